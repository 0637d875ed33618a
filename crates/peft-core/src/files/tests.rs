use super::*;

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

fn set(dir: &Path, version: &str) -> Result<Files> {
    let mut files = Files::new(dir)?;
    for name in ["tensors", "config"] {
        files.stage(name, |file| file.write_all(version.as_bytes()))?;
    }
    Ok(files)
}

/// What a reader finds: the versions of both files.
fn read(dir: &Path) -> [String; 2] {
    ["config", "tensors"].map(|name| {
        fs::read_to_string(readable(dir, "config", name)).unwrap_or_else(|e| e.to_string())
    })
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_set_is_replaced_and_nothing_else_is_left() -> Outcome {
    let dir = tempfile::tempdir()?;
    for version in ["1", "2", "3"] {
        set(dir.path(), version)?.commit()?;
        assert_eq!(read(dir.path()), [version, version]);
        assert_eq!(names(dir.path()), ["config", "tensors"]);
    }
    Ok(())
}

#[test]
fn a_set_that_is_not_committed_leaves_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    set(dir.path(), "1")?.commit()?;
    drop(set(dir.path(), "2")?);
    let mut files = Files::new(dir.path())?;
    let full = |_: &mut dyn Write| Err(io::Error::from(io::ErrorKind::StorageFull));
    let error = files.stage("tensors", full).unwrap_err();
    assert!(error.to_string().contains("tensors"), "{error}");
    drop(files);
    assert_eq!(read(dir.path()), ["1", "1"]);
    assert_eq!(names(dir.path()), ["config", "tensors"]);
    Ok(())
}

/// Every state that the steps of a commit pass through, as a kill would leave it.
#[test]
fn a_reader_never_finds_two_versions_and_the_next_commit_cleans_up() -> Outcome {
    // Each ends in the files there are: (name, version).
    let states: [(&[(&str, &str)], &str); 6] = [
        (&[("config", "1"), ("tensors", "1")], "1"),
        (
            &[("config", "1"), ("tensors", "1"), (".tensors.pending", "2")],
            "1",
        ),
        (
            &[
                ("config", "1"),
                ("tensors", "1"),
                (".tensors.pending", "2"),
                (".config.pending", "2"),
            ],
            "1",
        ),
        (
            &[
                ("tensors", "1"),
                (".tensors.pending", "2"),
                (".config.pending", "2"),
            ],
            "2",
        ),
        (&[("tensors", "2"), (".config.pending", "2")], "2"),
        (&[("tensors", "2"), ("config", "2")], "2"),
    ];
    for (files, expected) in states {
        let dir = tempfile::tempdir()?;
        for (name, version) in files {
            fs::write(dir.path().join(name), version)?;
        }
        assert_eq!(read(dir.path()), [expected, expected], "{files:?}");
        set(dir.path(), "3")?.commit()?;
        assert_eq!(read(dir.path()), ["3", "3"], "{files:?}");
        assert_eq!(names(dir.path()), ["config", "tensors"], "{files:?}");
    }
    Ok(())
}

#[test]
fn a_new_folder_has_its_name_when_it_is_whole() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("checkpoint-3");
    for version in ["1", "2"] {
        let folder = NewFolder::new(&path)?;
        write(folder.path().join("a"), version)?;
        folder.commit()?;
        assert_eq!(fs::read_to_string(path.join("a"))?, version);
        assert_eq!(names(dir.path()), ["checkpoint-3"]);
    }
    drop(NewFolder::new(&path)?);
    assert_eq!(names(dir.path()), ["checkpoint-3"]);
    remove_dir(&path)?;
    assert!(names(dir.path()).is_empty());
    let error = remove_dir(&path).unwrap_err().to_string();
    assert!(error.contains("checkpoint-3"), "{error}");
    assert!(names(dir.path()).is_empty());
    Ok(())
}

#[cfg(unix)]
#[test]
fn permissions_are_those_of_any_new_file_and_folder() -> Outcome {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let dir = tempfile::tempdir()?;
    let plain = dir.path().join("plain");
    fs::write(&plain, "")?;
    let plain_dir = dir.path().join("plain-dir");
    fs::create_dir(&plain_dir)?;
    set(dir.path(), "1")?.commit()?;
    set(dir.path(), "2")?.commit()?;
    assert_eq!(mode(&dir.path().join("tensors")), mode(&plain));
    assert_eq!(mode(&dir.path().join("config")), mode(&plain));
    let new = dir.path().join("new");
    NewFolder::new(&new)?.commit()?;
    assert_eq!(mode(&new), mode(&plain_dir));
    Ok(())
}
