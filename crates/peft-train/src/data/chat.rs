//! How conversations are written out, and what of them is learned.

use std::fmt::Display;

use peft_models::Message;

/// Who is learned from.
pub(super) const ASSISTANT: &str = "assistant";

/// A part of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    /// Whether it is a completion.
    pub(super) learned: bool,
}

/// The conversation as alternating pieces that are given and learned, written out by `render` as
/// [`peft_models::ChatTemplate::render`] does it. What the model is given to answer is one piece, as it is when it
/// answers: tokenizers may join what a cut would part.
///
/// # Errors
///
/// What `render` says, or that the text of a turn depends on the turns behind it.
pub(super) fn pieces<E: Display>(
    messages: &[Message],
    render: impl Fn(&[Message], bool) -> Result<String, E>,
) -> Result<Vec<Piece>, String> {
    let render =
        |messages: &[Message], reply| render(messages, reply).map_err(|error| error.to_string());
    let whole = render(messages, false)?;
    let mut pieces = Vec::new();
    let mut at = 0;
    for (index, message) in messages.iter().enumerate() {
        if message.role != ASSISTANT {
            continue;
        }
        let given = render(&messages[..index], true)?;
        let said = render(&messages[..=index], false)?;
        if !whole.starts_with(&said) || !said.starts_with(&given) || given.len() < at {
            return Err(
                "the tokenizer's chat template writes a turn otherwise once others follow, so what is learned \
                 cannot be told from what is given; set `chat`"
                    .into(),
            );
        }
        for (range, learned) in [(at..given.len(), false), (given.len()..said.len(), true)] {
            let text = whole[range].to_string();
            pieces.push(Piece { text, learned });
        }
        at = said.len();
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use peft_models::ChatTemplate;

    use super::*;

    fn conversation() -> [Message; 5] {
        [
            Message::system("Be short."),
            Message::user("Hi"),
            Message::assistant("Hello"),
            Message::user("Bye"),
            Message::assistant("Bye!"),
        ]
    }

    #[test]
    fn answers_are_learned_and_what_they_answer_is_one_piece() {
        let template = ChatTemplate::chatml();
        let render =
            |messages: &[Message], reply| Ok::<_, String>(template.render(messages, reply));
        let pieces = pieces(&conversation(), render).unwrap();
        let found: Vec<(&str, bool)> = pieces
            .iter()
            .map(|piece| (piece.text.as_str(), piece.learned))
            .collect();
        let first = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
                     <|im_start|>assistant\n";
        let second = "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n";
        let expected = [
            (first, false),
            ("Hello<|im_end|>\n", true),
            (second, false),
            ("Bye!<|im_end|>\n", true),
        ];
        assert_eq!(found, expected);
        assert_eq!(first, template.render(&conversation()[..2], true));
    }

    #[test]
    fn a_template_that_looks_ahead_is_refused() {
        let last_only = |messages: &[Message], reply: bool| {
            let shown = &messages[messages.len().saturating_sub(1)..];
            Ok::<_, String>(ChatTemplate::llama3().render(shown, reply))
        };
        let error = pieces(&conversation(), last_only).unwrap_err();
        assert!(error.contains("set `chat`"), "{error}");
        let failing = |_: &[Message], _: bool| Err::<String, _>("no such filter");
        assert_eq!(
            pieces(&conversation(), failing),
            Err("no such filter".into())
        );
    }
}
