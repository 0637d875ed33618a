//! A record from one line of JSON.

use peft_models::Message;
use serde_json::{Map, Value};

use super::Record;
use super::chat::ASSISTANT;

/// Fields of a conversation without which it would be another one, and which have no place here.
const UNREAD: [&str; 3] = ["tools", "functions", "images"];
/// The same of a message.
const UNREAD_OF_MESSAGE: [&str; 6] = [
    "tool_calls",
    "function_call",
    "reasoning_content",
    "thinking",
    "images",
    "audio",
];
/// Fields by which a message says whether it is learned.
const MARKS: [&str; 4] = ["weight", "train", "training", "loss"];
const SYSTEM: &str = "system";

/// The record; an error says what is wrong and what would be right.
pub(super) fn parse(line: &str) -> Result<Record, String> {
    let fields = serde_json::from_str(line).map_err(|error| format!("no JSON object: {error}"))?;
    let fields = Fields(fields);
    let record = record(&fields)?;
    Ok(match fields.task()? {
        Some(task) => record.with_task(task),
        None => record,
    })
}

fn record(fields: &Fields) -> Result<Record, String> {
    let has = |name: &str| fields.0.contains_key(name);
    if has("messages") {
        fields.without(&UNREAD, "messages")?;
        fields.without(&["history"], "messages")?;
        return conversation(fields);
    }
    if has("prompt") && has("completion") {
        fields.without(&UNREAD, "prompt")?;
        fields.without(&[SYSTEM, "history"], "prompt")?;
        return Ok(Record::Completion {
            prompt: fields.string("prompt")?,
            completion: fields.filled("completion")?,
        });
    }
    if has("instruction") && has("output") {
        fields.without(&UNREAD, "instruction")?;
        return instruction(fields);
    }
    if has("text") {
        return fields.string("text").map(Record::Text);
    }
    let names: Vec<&str> = fields.0.keys().map(String::as_str).collect();
    Err(format!(
        "the fields are {names:?}; expected `text`, `prompt` and `completion`, `instruction` and `output`, or \
         `messages`"
    ))
}

/// Fields of a line.
struct Fields(Map<String, Value>);

impl Fields {
    /// The value of a field that is there and holds something.
    fn given(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| holds(value))
    }

    /// A field that is there.
    fn string(&self, name: &str) -> Result<String, String> {
        match &self.0[name] {
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("`{name}` is {}, but must be a string", kind(other))),
        }
    }

    /// A field that is there, and must hold something.
    fn filled(&self, name: &str) -> Result<String, String> {
        match self.string(name)? {
            text if text.is_empty() => Err(format!("`{name}` is empty: there is nothing to learn")),
            text => Ok(text),
        }
    }

    /// A field that may be missing.
    fn optional(&self, name: &str) -> Result<Option<String>, String> {
        self.given(name).map(|_| self.string(name)).transpose()
    }

    /// The number of the record's task. A task that is named says nothing here.
    fn task(&self) -> Result<Option<usize>, String> {
        let Some(task @ Value::Number(number)) = self.given("task") else {
            return Ok(None);
        };
        match number.as_u64().map(usize::try_from) {
            Some(Ok(number)) => Ok(Some(number)),
            _ => Err(format!(
                "`task` is {task}, but tasks are counted from 0: 0, 1, 2, …"
            )),
        }
    }

    /// Refuses fields that hold something and that are not read beside `others`.
    fn without(&self, names: &[&str], others: &str) -> Result<(), String> {
        match names.iter().find(|name| self.given(name).is_some()) {
            None => Ok(()),
            Some(name) => Err(format!(
                "`{name}` is not read beside `{others}`, and without it something else would be learned: \
                 write it into the texts, or take it out"
            )),
        }
    }
}

/// Whether a value says anything.
fn holds(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Alpaca's fields, with what others added to them.
fn instruction(fields: &Fields) -> Result<Record, String> {
    let mut asked = fields.string("instruction")?;
    if let Some(input) = fields.optional("input")? {
        asked = format!("{asked}\n\n{input}");
    }
    let system = fields.optional(SYSTEM)?;
    let mut messages: Vec<Message> = system.into_iter().map(Message::system).collect();
    if let Some(history) = fields.given("history") {
        messages.extend(turns(history)?);
    }
    messages.push(Message::user(asked));
    messages.push(Message::assistant(fields.filled("output")?));
    Ok(Record::chat(messages))
}

/// Former questions with their answers.
fn turns(history: &Value) -> Result<Vec<Message>, String> {
    let wrong = || {
        "`history` must be a list of pairs, a question and its answer: [[\"…\", \"…\"], …], none of the \
         answers empty"
            .to_string()
    };
    let mut messages = Vec::new();
    for pair in history.as_array().ok_or_else(wrong)? {
        let [Value::String(asked), Value::String(answer)] =
            pair.as_array().ok_or_else(wrong)?.as_slice()
        else {
            return Err(wrong());
        };
        if answer.is_empty() {
            return Err(wrong());
        }
        messages.extend([Message::user(asked), Message::assistant(answer)]);
    }
    Ok(messages)
}

fn conversation(fields: &Fields) -> Result<Record, String> {
    let list = match &fields.0["messages"] {
        Value::Array(list) => list,
        other => {
            let found = kind(other);
            return Err(format!("`messages` is {found}, but must be a list"));
        }
    };
    let mut messages = Vec::new();
    let mut excluded = Vec::new();
    if let Some(system) = fields.optional(SYSTEM)? {
        messages.push(Message::system(system));
    }
    for (number, value) in (1..).zip(list) {
        let (message, learned) =
            message(value).map_err(|reason| format!("message {number}: {reason}"))?;
        if message.role == SYSTEM && number == 1 && !messages.is_empty() {
            return Err("`system` and a system message are given; one would do".into());
        }
        if message.role == ASSISTANT && !learned {
            excluded.push(messages.len());
        }
        messages.push(message);
    }
    let said = messages.iter().filter(|message| message.role == ASSISTANT);
    let said = said.count();
    match messages.last() {
        _ if list.is_empty() => Err("`messages` is empty".into()),
        Some(last) if last.role == ASSISTANT => {
            if excluded.len() == said {
                return Err(
                    "the weights of all of the assistant's messages are 0: there is nothing to \
                            learn; take the line out"
                        .into(),
                );
            }
            Ok(Record::Chat { messages, excluded })
        }
        _ => Err("the last message must be the assistant's: it is what is learned".into()),
    }
}

/// A message, and whether it is learned if the assistant says it.
fn message(value: &Value) -> Result<(Message, bool), String> {
    let mut learned = true;
    if let Value::Object(fields) = value {
        let unread = |name: &&&str| fields.get(**name).is_some_and(holds);
        if let Some(name) = UNREAD_OF_MESSAGE.iter().find(unread) {
            return Err(format!(
                "`{name}` is not read, and without it something else would be learned: write it into \
                 `content`, or take the line out"
            ));
        }
        for name in MARKS {
            let Some(mark) = fields.get(name).filter(|mark| holds(mark)) else {
                continue;
            };
            learned &= marked(name, mark)?;
            if learned && fields.get("role").is_some_and(|role| role != ASSISTANT) {
                return Err(format!(
                    "`{name}` is {mark}, but only what the assistant says is learned; take it out, or \
                     learn all with `completion_only` false"
                ));
            }
        }
    }
    let message: Message = serde_json::from_value(value.clone())
        .map_err(|error| format!("{error}; expected {{\"role\": …, \"content\": …}}"))?;
    if message.role == ASSISTANT && learned && message.content.is_empty() {
        return Err("`content` is empty: there is nothing to learn".into());
    }
    Ok((message, learned))
}

/// Whether a mark says that its message is learned.
fn marked(name: &str, mark: &Value) -> Result<bool, String> {
    match (mark.as_bool(), mark.as_f64()) {
        (Some(learned), _) => Ok(learned),
        (None, Some(0.0)) => Ok(false),
        (None, Some(1.0)) => Ok(true),
        _ => Err(format!(
            "`{name}` is {mark}, but a message is learned (1) or not (0)"
        )),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(line: &str, expected: &str) {
        let error = parse(line).unwrap_err();
        assert!(error.contains(expected), "{line}: {error}");
    }

    #[test]
    fn what_is_no_record_is_told_why() {
        for (line, expected) in [
            ("nonsense", "no JSON object"),
            ("[1]", "no JSON object"),
            ("{\"question\": 1}", "question"),
            ("{\"prompt\": \"a\"}", "`completion`"),
            (
                "{\"prompt\": 1, \"completion\": \"a\"}",
                "`prompt` is a number",
            ),
            (
                "{\"prompt\": \"a\", \"completion\": \"\"}",
                "`completion` is empty",
            ),
            ("{\"messages\": \"a\"}", "`messages` is a string"),
            ("{\"messages\": []}", "`messages` is empty"),
            ("{\"messages\": [{\"role\": \"user\"}]}", "message 1"),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
                "the last message",
            ),
            (
                "{\"messages\": [{\"role\": \"assistant\", \"content\": \"\"}]}",
                "message 1: `content` is empty",
            ),
        ] {
            refused(line, expected);
        }
    }

    /// A conversation whose second message has some more fields.
    fn answered(more: &Value) -> String {
        let mut answer = json!({"role": "assistant", "content": "b"});
        let fields = answer.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        let messages = json!([
            {"role": "user", "content": "a", "weight": 0}, answer,
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1},
        ]);
        json!({ "messages": messages }).to_string()
    }

    #[test]
    fn messages_of_weight_0_are_excluded() {
        let excluded = |more| match parse(&answered(&more)).unwrap() {
            Record::Chat { messages, excluded } => {
                assert_eq!(messages.len(), 4);
                excluded
            }
            other => panic!("{other:?}"),
        };
        for learned in [
            json!({}),
            json!({"weight": 1}),
            json!({"weight": 1.0}),
            json!({"weight": null}),
            json!({"train": true, "id": 7}),
        ] {
            assert_eq!(excluded(learned), [0; 0]);
        }
        for given in [
            json!({"weight": 0}),
            json!({"weight": 0.0}),
            json!({"train": false}),
            json!({"training": false, "weight": 1}),
            json!({"loss": false}),
            // Nothing is learned of it, so it may be empty.
            json!({"weight": 0, "content": ""}),
        ] {
            assert_eq!(excluded(given), [1]);
        }
        for (weight, text) in [
            (json!(0.5), "0.5"),
            (json!("no"), "\"no\""),
            (json!(2), "2"),
        ] {
            let expected = format!("message 2: `weight` is {text}");
            refused(&answered(&json!({"weight": weight})), &expected);
        }
        let user = json!({"messages": [{"role": "user", "content": "a", "weight": 1},
            {"role": "assistant", "content": "b"}]});
        refused(&user.to_string(), "message 1: `weight` is 1");
        let none = json!({"messages": [{"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0}]});
        refused(&none.to_string(), "nothing to learn");
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        let call = json!([{"type": "function", "function": {"name": "weather"}}]);
        for (field, value) in [
            ("tool_calls", &call),
            ("function_call", &json!({"name": "weather"})),
            ("reasoning_content", &json!("Hmm.")),
        ] {
            let line = answered(&json!({ field: value, "content": "" }));
            refused(&line, &format!("message 2: `{field}` is not read"));
        }
        // Without a value they say nothing.
        let empty = answered(&json!({"tool_calls": [], "function_call": null, "thinking": ""}));
        assert!(parse(&empty).is_ok());
        let messages = json!([{"role": "assistant", "content": "a"}]);
        let chat = json!({ "messages": messages, "tools": call });
        refused(&chat.to_string(), "`tools` is not read");
        let chat = json!({ "messages": messages, "history": [["a", "b"]] });
        refused(&chat.to_string(), "`history` is not read beside `messages`");
        for field in ["system", "history", "tools"] {
            let line = json!({"prompt": "a", "completion": "b", field: "c"});
            refused(&line.to_string(), &format!("`{field}` is not read"));
        }
    }

    #[test]
    fn a_line_says_its_task() {
        let text = || Record::Text("a".into());
        for (task, expected) in [
            (json!(0), text().with_task(0)),
            (json!(3), text().with_task(3)),
            (json!(null), text()),
            (json!("translation"), text()),
        ] {
            let line = json!({"text": "a", "task": task}).to_string();
            assert_eq!(parse(&line), Ok(expected));
        }
        for task in [json!(-1), json!(0.5)] {
            let line = json!({"text": "a", "task": task}).to_string();
            refused(&line, "`task` is ");
        }
    }

    #[test]
    fn system_and_history_come_before() {
        let line = json!({"instruction": "And in winter?", "input": "", "output": "Closed.",
            "system": "You run a kiosk.", "history": [["When?", "At nine."]]});
        let messages = vec![
            Message::system("You run a kiosk."),
            Message::user("When?"),
            Message::assistant("At nine."),
            Message::user("And in winter?"),
            Message::assistant("Closed."),
        ];
        assert_eq!(parse(&line.to_string()), Ok(Record::chat(messages)));
        for history in [json!("a"), json!(["a"]), json!([["a"]]), json!([["a", ""]])] {
            let line = json!({"instruction": "a", "output": "b", "history": history});
            refused(&line.to_string(), "`history` must be a list of pairs");
        }
        let said = json!({"role": "assistant", "content": "a"});
        let line = json!({"messages": [said], "system": "Be kind."});
        let messages = vec![Message::system("Be kind."), Message::assistant("a")];
        assert_eq!(parse(&line.to_string()), Ok(Record::chat(messages)));
        let line =
            json!({"messages": [{"role": "system", "content": "b"}, said], "system": "Be kind."});
        refused(&line.to_string(), "one would do");
    }
}
