//! Chats that a model was not published for: templates of our own, and the tokens that end their turns.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::LlamaTokenizer;
use crate::{LoadError, Message};

/// Who answers.
const ASSISTANT: &str = "assistant";

/// Where a turn's speaker is named.
const ROLE: &str = "{role}";

/// A way to write conversations out: one turn after the other, each between two marks.
///
/// [`LlamaTokenizer::with_chat`] makes it the tokenizer's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatTemplate {
    /// Before what is said; `{role}` in it is who speaks. It is given, also before the assistant's turns.
    pub before: String,
    /// After what is said. In the assistant's turns it is learned, so that the model learns to end.
    pub after: String,
}

impl ChatTemplate {
    /// Any marks.
    pub fn new(before: impl Into<String>, after: impl Into<String>) -> Self {
        Self {
            before: before.into(),
            after: after.into(),
        }
    }

    /// ChatML, SmolLM2's and Qwen's.
    pub fn chatml() -> Self {
        Self::new("<|im_start|>{role}\n", "<|im_end|>\n")
    }

    /// Llama 3's headers.
    pub fn llama3() -> Self {
        Self::new(
            "<|start_header_id|>{role}<|end_header_id|>\n\n",
            "<|eot_id|>",
        )
    }

    /// The text of `messages`; with `reply`, the beginning of the assistant's next turn behind.
    pub fn render(&self, messages: &[Message], reply: bool) -> String {
        let before = |role: &str| self.before.replace(ROLE, role);
        let mut text = String::new();
        for message in messages {
            text += &before(&message.role);
            text += &message.content;
            text += &self.after;
        }
        if reply {
            text += &before(ASSISTANT);
        }
        text
    }

    /// The same as a template in Jinja's language; `opening` is in front of all.
    fn jinja(&self, opening: &str) -> String {
        let roles: Vec<String> = self.before.split(ROLE).map(quoted).collect();
        let before = roles.join(" + message['role'] + ");
        let after = quoted(&self.after);
        let reply = quoted(&self.before.replace(ROLE, ASSISTANT));
        let opening = match opening {
            "" => String::new(),
            text => format!("{{{{ {} }}}}", quoted(text)),
        };
        format!(
            "{opening}{{% for message in messages %}}{{{{ {before} + message['content'] + {after} }}}}{{% endfor %}}\
             {{% if add_generation_prompt %}}{{{{ {reply} }}}}{{% endif %}}"
        )
    }

    /// Parts of the marks that look like special tokens: `<…>` without a space.
    fn tokens(&self) -> impl Iterator<Item = &str> {
        let parts = self.before.split(ROLE).chain([self.after.as_str()]);
        parts.flat_map(|part| {
            let starts = part.match_indices('<');
            starts.filter_map(|(start, _)| {
                let end = start + part[start..].find('>')? + 1;
                let token = &part[start..end];
                let plain = token.contains(char::is_whitespace) || token[1..].contains('<');
                (!plain && token.len() > 2).then_some(token)
            })
        })
    }
}

/// A text as Jinja, and Python, write it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("'");
    for character in text.chars() {
        match character {
            '\\' => quoted += "\\\\",
            '\'' => quoted += "\\'",
            '\n' => quoted += "\\n",
            '\r' => quoted += "\\r",
            '\t' => quoted += "\\t",
            other => quoted.push(other),
        }
    }
    quoted + "'"
}

impl LlamaTokenizer {
    /// The tokenizer for chats in the form of `template`, as for a base model that is trained on chats: it is the
    /// chat template, and the token that begins its `after` ends texts, beside those that did. So
    /// [`generate`](crate::Llama::generate) stops where a turn ends, and [`save`](Self::save) and
    /// [`export`](crate::Llama::export) write both.
    ///
    /// Training takes the tokenizer's own template where the training configuration has none: it learns from the
    /// same texts that [`chat`](Self::chat) asks with.
    ///
    /// ```no_run
    /// use peft_models::{ChatTemplate, LlamaTokenizer};
    ///
    /// # fn main() -> Result<(), peft_models::LoadError> {
    /// let tokenizer = LlamaTokenizer::load("SmolLM2-135M")?.with_chat(&ChatTemplate::chatml())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`LoadError::Setting`] if a mark that looks like a special token (`<|im_start|>`) is none of this tokenizer,
    /// so that it would be learned as plain text, or if `after` begins with no special token: nothing would end
    /// a turn. For marks of plain text there are [`with_chat_template`](Self::with_chat_template) and
    /// [`GenerateConfig::stop_strings`](crate::GenerateConfig::stop_strings).
    pub fn with_chat(self, template: &ChatTemplate) -> Result<Self, LoadError> {
        let refuse = |found: &str, expected: &str| LoadError::Setting {
            setting: "template",
            found: format!("`{found}`"),
            expected: expected.to_string(),
        };
        let unknown = template.tokens().find(|token| self.token(token).is_none());
        if let Some(token) = unknown {
            return Err(refuse(
                token,
                "made of the tokenizer's own tokens: this one would be learned as plain text; take another \
                 template, or `with_chat_template`",
            ));
        }
        let special = self.inner.get_added_tokens_decoder();
        let first = self.encode(&template.after, false)?.first().copied();
        let Some(end) = first.filter(|id| special.contains_key(id)) else {
            return Err(refuse(
                &template.after,
                "begun by a special token in `after`: without one the model never ends its turn; take another \
                 template, or `with_chat_template` and stop strings",
            ));
        };
        let opening = self.encode("", true)?;
        let opening = match self.bos.filter(|bos| opening.first() == Some(bos)) {
            Some(bos) => self.inner.id_to_token(bos).unwrap_or_default(),
            None => String::new(),
        };
        let mut ends = self.eos.clone();
        if !ends.contains(&end) {
            ends.push(end);
        }
        let mut tokenizer = self.with_chat_template(template.jinja(&opening));
        tokenizer.kept.new_ends |= tokenizer.eos != ends;
        tokenizer.eos = ends;
        Ok(tokenizer)
    }

    /// Sets the chat template, in Jinja's language. Of several in the tokenizer's file it is the one called
    /// `default`.
    #[must_use]
    pub fn with_chat_template(mut self, template: impl Into<String>) -> Self {
        let template = template.into();
        if let Some(config) = &mut self.kept.config
            && (!self.kept.jinja || config.contains_key("chat_template"))
        {
            match config.get_mut("chat_template") {
                Some(Value::Array(several)) => {
                    several.retain(|named| named["name"] != "default");
                    several.push(json!({ "name": "default", "template": template }));
                }
                _ => {
                    config.insert("chat_template".to_string(), json!(template));
                }
            }
        }
        self.chat_template = Some(template);
        self
    }

    /// Sets the tokens that end texts, by what they are called: `<|im_end|>`. In
    /// [`save`](Self::save)d folders they are `eos_token_id` of `generation_config.json`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Setting`] for a text that is no token of this tokenizer; [`LoadError::TokenId`] for a token
    /// that the model has no embedding for.
    pub fn with_end_tokens<T: AsRef<str>>(
        mut self,
        tokens: impl IntoIterator<Item = T>,
    ) -> Result<Self, LoadError> {
        let mut ends = Vec::new();
        for token in tokens {
            let token = token.as_ref();
            let id = self.token(token).ok_or_else(|| LoadError::Setting {
                setting: "tokens",
                found: format!("`{token}`"),
                expected: "a token of the tokenizer".to_string(),
            })?;
            self.check_ids(&[id])?;
            ends.push(id);
        }
        self.kept.new_ends |= self.eos != ends;
        self.eos = ends;
        Ok(self)
    }

    fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::save::CONFIG;
    use super::*;

    fn tokenizer() -> LlamaTokenizer {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/generate/model");
        LlamaTokenizer::load(dir).unwrap()
    }

    #[test]
    fn a_template_is_the_tokenizers_own_and_its_mark_ends_texts() {
        let template = ChatTemplate::new("<|start|>{role}:\n", "<|end|>\n");
        let bare = tokenizer().with_end_tokens(["<|begin|>"]).unwrap();
        assert_eq!(bare.eos(), [0]);
        let tokenizer = bare.with_chat(&template).unwrap();
        assert_eq!(tokenizer.eos(), [0, 2]);
        let chat = [Message::user("a 'cat'"), Message::assistant("sat\\")];
        for reply in [true, false] {
            let found = tokenizer.apply_chat_template(&chat, reply).unwrap();
            // This tokenizer puts a token in front of each text.
            let expected = format!("<|begin|>{}", template.render(&chat, reply));
            assert_eq!(found, expected);
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"vocab_size": 324}"#).unwrap();
        tokenizer.save(dir.path()).unwrap();
        let again = LlamaTokenizer::load(dir.path()).unwrap();
        assert_eq!(again.eos(), [0, 2]);
        assert_eq!(again.chat_template(), tokenizer.chat_template());
    }

    #[test]
    fn quotes_and_line_ends_in_marks_stay() {
        for before in [
            "",
            "it's {role}\t\\ of {role}:\r\n",
            "{role}",
            "{% {role} #}",
        ] {
            let template = ChatTemplate::new(before, "<|end|>'\n");
            let tokenizer = tokenizer().with_chat(&template).unwrap();
            let chat = [Message::user("a"), Message::assistant("b\n")];
            let found = tokenizer.chat(&chat).unwrap();
            assert_eq!(found, format!("<|begin|>{}", template.render(&chat, true)));
        }
    }

    #[test]
    fn marks_that_are_no_tokens_are_refused_by_name() {
        let refusal = |before: &str, after: &str| {
            let template = ChatTemplate::new(before, after);
            tokenizer().with_chat(&template).unwrap_err().to_string()
        };
        let said = refusal("<|im_start|>{role}\n", "<|end|>\n");
        assert!(
            said.contains("`<|im_start|>`") && said.contains("plain text"),
            "{said}"
        );
        let said = refusal("<|start|>{role}\n", "</s>\n");
        assert!(said.contains("`</s>`"), "{said}");
        let said = refusal("{role}: ", "\n\n");
        assert!(said.contains("`after`"), "{said}");
        let error = tokenizer().with_end_tokens(["<|eot|>"]).unwrap_err();
        assert!(error.to_string().contains("`<|eot|>`"), "{error}");
        // What a reader would call text is no mark.
        let plain = ChatTemplate::new("### {role} < 3 > <>\n", "<|end|>");
        tokenizer().with_chat(&plain).unwrap();
    }

    #[test]
    fn of_several_templates_the_default_is_replaced() {
        let mut tokenizer = tokenizer();
        let several = json!([{ "name": "tool_use", "template": "a" }, { "name": "default", "template": "b" }]);
        let config = tokenizer.kept.config.as_mut().unwrap();
        config.insert("chat_template".into(), several);
        let tokenizer = tokenizer.with_chat_template("c");
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        let written = std::fs::read(dir.path().join(CONFIG)).unwrap();
        let written: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(written["chat_template"][0]["template"], "a");
        assert_eq!(written["chat_template"][1]["template"], "c");
    }
}
