//! How conversations are written out, and what of them is learned.

use std::fmt::Display;

use peft_models::Message;

/// Who is learned from.
pub(super) const ASSISTANT: &str = "assistant";

/// What becomes of a part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A prompt: learned only where prompts are learned.
    Given,
    /// A completion.
    Learned,
    /// Read, and never learned.
    Excluded,
}

/// A part of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) part: Part,
}

/// The conversation as alternating pieces that are given and learned, written out by `render` as
/// [`peft_models::ChatTemplate::render`] does it. What the model is given to answer is one piece, as it is when it
/// answers: tokenizers may join what a cut would part. The assistant's messages with the numbers in `excluded`
/// are not learned.
///
/// # Errors
///
/// What `render` says, or that the text of a turn depends on the turns behind it.
pub(super) fn pieces<E: Display>(
    messages: &[Message],
    excluded: &[usize],
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
        let said = render(&messages[..=index], false)?;
        if !whole.starts_with(&said) {
            return Err(
                "the tokenizer's chat template writes a turn otherwise once others follow, so what is learned \
                 cannot be told from what is given; set `chat`"
                    .into(),
            );
        }
        let begins = beginning(&messages[..=index], &said, &render)?;
        if begins < at {
            return Err(
                "the tokenizer's chat template does not write the turns one after the other, so what is \
                 learned cannot be told from what is given; set `chat`"
                    .into(),
            );
        }
        let part = if excluded.contains(&index) {
            Part::Excluded
        } else {
            Part::Learned
        };
        for (range, part) in [(at..begins, Part::Given), (begins..said.len(), part)] {
            let text = whole[range].to_string();
            pieces.push(Piece { text, part });
        }
        at = said.len();
    }
    Ok(pieces)
}

/// Where the assistant's words begin in `said`, the text of a conversation that ends with them.
///
/// That is behind the prompt that the model is given to answer, as long as `said` begins with that. It does not
/// where the prompt opens a thought (`<think>`) that the turn has not, and nobody is given a prompt before the
/// first message: then it is where texts with other words there part.
fn beginning(
    messages: &[Message],
    said: &str,
    render: &impl Fn(&[Message], bool) -> Result<String, String>,
) -> Result<usize, String> {
    let (last, before) = messages.split_last().expect("the assistant's message");
    // Templates may look at the first message, which is not there before it.
    let prompt = render(before, true).ok();
    let prompt = prompt.filter(|prompt| said.starts_with(prompt.as_str()));
    if let Some(prompt) = &prompt
        && !before.is_empty()
    {
        return Ok(prompt.len());
    }
    let with = |words: &str| {
        let other = Message::new(last.role.clone(), words);
        render(&[before, &[other]].concat(), false)
    };
    let (one, other) = (with("A")?, with("B")?);
    let header = common(&one[..common(&one, &other)], said);
    // A space in front of all words is the words', as it is behind a prompt.
    match prompt {
        Some(prompt)
            if said[prompt.len()..header.max(prompt.len())]
                .trim()
                .is_empty() =>
        {
            Ok(prompt.len())
        }
        _ => Ok(header),
    }
}

/// How many bytes two texts have in common at their beginnings.
fn common(one: &str, other: &str) -> usize {
    let pairs = one.chars().zip(other.chars());
    let same = pairs.take_while(|(one, other)| one == other);
    same.map(|(letter, _)| letter.len_utf8()).sum()
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

    /// Text and part of each piece.
    fn parts(
        messages: &[Message],
        excluded: &[usize],
        render: &impl Fn(&[Message], bool) -> String,
    ) -> Vec<(String, Part)> {
        let render = |messages: &[Message], reply| Ok::<_, String>(render(messages, reply));
        let pieces = pieces(messages, excluded, render).unwrap();
        let pieces = pieces.into_iter();
        pieces.map(|piece| (piece.text, piece.part)).collect()
    }

    fn expected<const N: usize>(pieces: [(&str, Part); N]) -> Vec<(String, Part)> {
        let pieces = pieces.into_iter();
        pieces
            .map(|(text, part)| (text.to_string(), part))
            .collect()
    }

    #[test]
    fn answers_are_learned_and_what_they_answer_is_one_piece() {
        let template = ChatTemplate::chatml();
        let render = |messages: &[Message], reply| template.render(messages, reply);
        let first = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
                     <|im_start|>assistant\n";
        let second = "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n";
        let whole = |of_first| {
            expected([
                (first, Part::Given),
                ("Hello<|im_end|>\n", of_first),
                (second, Part::Given),
                ("Bye!<|im_end|>\n", Part::Learned),
            ])
        };
        assert_eq!(parts(&conversation(), &[], &render), whole(Part::Learned));
        assert_eq!(parts(&conversation(), &[2], &render), whole(Part::Excluded));
        assert_eq!(first, template.render(&conversation()[..2], true));
    }

    #[test]
    fn a_conversation_that_the_assistant_opens_is_learned_from_its_first_words() {
        let messages = [
            Message::assistant("Bonjour"),
            Message::user("Hi"),
            Message::assistant("Again"),
        ];
        let turns = |messages: &[Message], reply| {
            ChatTemplate::new("<{role}>", ";").render(messages, reply)
        };
        let plain = expected([
            ("<assistant>", Part::Given),
            ("Bonjour;", Part::Learned),
            ("<user>Hi;<assistant>", Part::Given),
            ("Again;", Part::Learned),
        ]);
        assert_eq!(parts(&messages, &[], &turns), plain);
        // One that says what is said before the first message, whoever says that.
        let system = |messages: &[Message], reply| match messages {
            [] => turns(messages, reply),
            _ => format!("<system>Be kind;{}", turns(messages, reply)),
        };
        let mut kind = plain.clone();
        kind[0].0 = "<system>Be kind;<assistant>".into();
        assert_eq!(parts(&messages, &[], &system), kind);
        // One without headers, where a reply begins with a space: Mistral's.
        let spaced = |messages: &[Message], _| {
            let said = messages.iter().map(|message| match message.role.as_str() {
                ASSISTANT => format!(" {};", message.content),
                _ => format!("[{}]", message.content),
            });
            said.collect::<String>()
        };
        let spaced_pieces = expected([
            ("", Part::Given),
            (" Bonjour;", Part::Learned),
            ("[Hi]", Part::Given),
            (" Again;", Part::Learned),
        ]);
        assert_eq!(parts(&messages, &[], &spaced), spaced_pieces);
    }

    #[test]
    fn a_thought_that_only_the_prompt_opens_is_not_learned() {
        let thinking = |messages: &[Message], reply: bool| {
            let thought = if reply { "<think>\n" } else { "" };
            let mut shown = messages.to_vec();
            for message in &mut shown {
                // As R1's, it leaves former thoughts out.
                if let Some((_, answer)) = message.content.split_once("</think>") {
                    message.content = answer.to_string();
                }
            }
            ChatTemplate::new("<{role}>", ";").render(&shown, reply) + thought
        };
        for words in ["Hello", "Hmm.</think>Hello"] {
            let mut messages = conversation();
            messages[2].content = words.into();
            let pieces = expected([
                ("<system>Be short.;<user>Hi;<assistant>", Part::Given),
                ("Hello;", Part::Learned),
                ("<user>Bye;<assistant>", Part::Given),
                ("Bye!;", Part::Learned),
            ]);
            assert_eq!(parts(&messages, &[], &thinking), pieces);
        }
    }

    #[test]
    fn a_template_that_looks_ahead_is_refused() {
        let last_only = |messages: &[Message], reply: bool| {
            let shown = &messages[messages.len().saturating_sub(1)..];
            Ok::<_, String>(ChatTemplate::llama3().render(shown, reply))
        };
        let error = pieces(&conversation(), &[], last_only).unwrap_err();
        assert!(error.contains("set `chat`"), "{error}");
        let failing = |_: &[Message], _: bool| Err::<String, _>("no such filter");
        assert_eq!(
            pieces(&conversation(), &[], failing),
            Err("no such filter".into())
        );
    }
}
