//! Where running text is cut in two.

/// Cuts about `share` off the end of a text: at the next paragraph, else the next line, else the next word, else where
/// it falls. At least half of that share is cut off. Neither part has white space where it was cut.
pub(super) fn cut(text: &str, share: f64) -> (&str, &str) {
    let boundary = |at: usize| {
        (0..=at)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0)
    };
    let at = boundary((text.len() as f64 * (1.0 - share)) as usize);
    let near = &text[at..boundary(at + (text.len() - at) / 2)];
    let breaks = ["\n\n", "\n", " "];
    let found = breaks.into_iter().find_map(|space| near.find(space));
    let (before, after) = text.split_at(at + found.unwrap_or(0));
    (before.trim_end(), after.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_paragraphs_lines_or_words() {
        let paragraphs = "abcdefgh\n\nijkl mnop\nqrst\n\nuvwxyz abc defghi\n\njkl";
        assert_eq!(cut(paragraphs, 0.9), ("abcdefgh", &paragraphs[10..]));
        let words = "one two three four five six";
        assert_eq!(cut(words, 0.5), ("one two three", "four five six"));
        assert_eq!(cut("abcdefghij", 0.5), ("abcde", "fghij"));
        assert_eq!(cut("one two\nthree four", 0.9).1, "three four");
        assert_eq!(cut("äöüäöü", 0.5), ("äöü", "äöü"));
        assert_eq!(cut("", 0.5), ("", ""));
    }
}
