use super::*;

fn layout() -> Layout {
    let layer = |name: &str, kind: LayerKind, head| Layer {
        name: name.to_string(),
        container: kind.to_string(),
        kind,
        params: Vec::new(),
        head,
        groups: 1,
    };
    Layout {
        params: Vec::new(),
        sites: Vec::new(),
        layers: vec![
            layer("embeddings.word_embeddings", LayerKind::Embedding, false),
            layer("encoder.layer.0.query", LayerKind::Linear, false),
            layer("encoder.layer.0.subquery", LayerKind::Linear, false),
            layer("encoder.layer.1.query", LayerKind::Linear, false),
            layer("encoder.layer.10.query", LayerKind::Linear, false),
            layer("classifier", LayerKind::Linear, true),
        ],
        model_type: None,
        model_class: None,
        decoder: None,
    }
}

fn names(targets: &Targets) -> Result<Vec<String>> {
    let layout = layout();
    let selected = targets.select(&layout, "test", &Selection::from(["query"]), true)?;
    Ok(selected
        .into_iter()
        .map(|layer| layer.name.clone())
        .collect())
}

#[test]
fn a_name_matches_whole_segments_only() {
    let found = names(&Targets::new(["query"])).unwrap();
    assert_eq!(
        found,
        [
            "encoder.layer.0.query",
            "encoder.layer.1.query",
            "encoder.layer.10.query"
        ]
    );
}

#[test]
fn a_pattern_matches_the_whole_name() {
    assert_eq!(
        names(&Targets::new(r".*layer\.1\..*")).unwrap(),
        ["encoder.layer.1.query"]
    );
    assert!(matches!(
        names(&Targets::new("query")),
        Err(Error::NoTarget { .. })
    ));
    // Python's lookahead, as Hugging Face users write it.
    assert_eq!(
        names(&Targets::new(r"(?!.*sub).*\.0\..*query")).unwrap(),
        ["encoder.layer.0.query"]
    );
}

#[test]
fn all_linear_skips_the_head() {
    let found = names(&Targets::new(ALL_LINEAR)).unwrap();
    assert_eq!(found.len(), 4);
    assert!(!found.contains(&"classifier".to_string()));
}

#[test]
fn layers_to_transform_selects_blocks_not_prefixes() {
    let mut targets = Targets::new(["query"]);
    targets.layers_to_transform = Some(OneOrMany::One(1));
    assert_eq!(names(&targets).unwrap(), ["encoder.layer.1.query"]);
    targets.layers_pattern = Some(OneOrMany::One("blocks".into()));
    assert!(matches!(names(&targets), Err(Error::NoTarget { .. })));
    let mut pattern = Targets::new(".*query");
    pattern.layers_to_transform = Some(OneOrMany::Many(vec![0]));
    assert!(matches!(names(&pattern), Err(Error::Config { .. })));
}

#[test]
fn exclusion_and_missing_names() {
    let mut targets = Targets::new(ALL_LINEAR);
    targets.exclude_modules = Some(Selection::from(["query"]));
    assert_eq!(names(&targets).unwrap(), ["encoder.layer.0.subquery"]);
    let error = names(&Targets::new(["query", "valeu"]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`valeu`") && error.contains("encoder.layer.0.query"),
        "{error}"
    );
    assert!(matches!(
        names(&Targets::new("(")),
        Err(Error::Pattern { .. })
    ));
}

#[test]
fn what_selects_all_linear_layers_is_compared_without_case() {
    let expected = names(&Targets::new(ALL_LINEAR)).unwrap();
    assert_eq!(names(&Targets::new("All-Linear")).unwrap(), expected);
}

#[test]
fn all_linear_excludes_nothing_and_is_refused_as_exclusion() {
    let mut targets = Targets::new(["query"]);
    targets.exclude_modules = Some("ALL-linear".into());
    let error = names(&targets).unwrap_err().to_string();
    assert!(
        error.contains("exclude_modules") && error.contains("ALL-linear"),
        "{error}"
    );
    // A checkpoint's, as upstream: a pattern that matches nothing.
    let layout = layout();
    let default = Selection::from(ALL_LINEAR);
    let selected = targets.select(&layout, "test", &default, false).unwrap();
    assert_eq!(selected.len(), 3);
}

#[test]
fn a_name_of_block_lists_needs_blocks_and_a_list_of_targets() {
    let mut targets = Targets::new(["query"]);
    targets.layers_pattern = Some(OneOrMany::One("layer".into()));
    for blocks in [None, Some(OneOrMany::Many(Vec::new()))] {
        targets.layers_to_transform = blocks;
        let error = names(&targets).unwrap_err().to_string();
        assert!(
            error.contains("`layers_pattern`") && error.contains("layers_to_transform"),
            "{error}"
        );
    }
    targets.layers_to_transform = Some(OneOrMany::One(0));
    assert_eq!(names(&targets).unwrap(), ["encoder.layer.0.query"]);
    let mut pattern = Targets::new(".*query");
    pattern.layers_pattern = Some(OneOrMany::One("layer".into()));
    let error = names(&pattern).unwrap_err().to_string();
    assert!(error.contains("`layers_pattern`"), "{error}");
}

#[test]
fn an_empty_name_of_block_lists_is_any_name() {
    let mut targets = Targets::new(["query"]);
    targets.layers_to_transform = Some(OneOrMany::One(1));
    let any = [
        OneOrMany::One(String::new()),
        OneOrMany::Many(Vec::new()),
        OneOrMany::Many(vec![String::new()]),
    ];
    for pattern in any {
        targets.layers_pattern = Some(pattern);
        assert_eq!(names(&targets).unwrap(), ["encoder.layer.1.query"]);
    }
    targets.layers_pattern = Some(OneOrMany::Many(vec!["layer".into(), String::new()]));
    assert!(matches!(names(&targets), Err(Error::Config { .. })));
    // Without blocks, too: nothing is asked.
    let mut targets = Targets::new(".*query");
    targets.layers_pattern = Some(OneOrMany::One(String::new()));
    assert_eq!(names(&targets).unwrap().len(), 4);
}

#[test]
fn empty_texts_are_refused_by_the_field() {
    let field = |targets: &Targets, field: &str| {
        let error = names(targets).unwrap_err().to_string();
        assert!(
            error.contains(field) && error.contains("an empty text"),
            "{error}"
        );
    };
    field(&Targets::new(["query", ""]), "target_modules");
    field(&Targets::new(""), "target_modules");
    let mut excluding = Targets::new(["query"]);
    excluding.exclude_modules = Some(Selection::from([""]));
    field(&excluding, "exclude_modules");
    // A checkpoint's tensors tell what it adapts.
    let layout = layout();
    let targets = Targets::new(["query", ""]);
    let default = Selection::from(ALL_LINEAR);
    let selected = targets.select(&layout, "test", &default, false).unwrap();
    assert_eq!(selected.len(), 3);
}

#[test]
fn lists_and_patterns_come_in_many_types() {
    let list = Selection::Names(vec!["q".into(), "v".into()]);
    assert_eq!(Selection::from(["q", "v"]), list);
    assert_eq!(Selection::from(&["q", "v"]), list);
    assert_eq!(Selection::from(&["q", "v"][..]), list);
    assert_eq!(Selection::from(vec!["q", "v"]), list);
    assert_eq!(
        Selection::from(vec!["q".to_string(), "v".to_string()]),
        list
    );
    let pattern = Selection::Pattern("q|v".into());
    assert_eq!(Selection::from("q|v".to_string()), pattern);
    assert_eq!(Selection::from("q|v"), pattern);
}
