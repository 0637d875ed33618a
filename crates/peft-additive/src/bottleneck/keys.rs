//! Names in AdapterHub's files of what is no layer's.

use peft_core::method::CheckpointKey;

/// The key of what is no layer's: in AdapterHub's files `<module>.<list>.<adapter>.<key>`, where the module is the model
/// itself if its name is empty.
pub(crate) fn listed(
    field: &str,
    (module, list): (&str, &str),
    key: &str,
    transposed: bool,
) -> CheckpointKey {
    let list = if module.is_empty() {
        list.to_string()
    } else {
        format!("{module}.{list}")
    };
    let in_file = CheckpointKey::root("", &format!("{list}.{{adapter}}.{key}"));
    let in_memory = CheckpointKey::named(field, &format!("{list}.{key}"));
    if transposed {
        in_memory.transposed().in_adapterhub(in_file.transposed())
    } else {
        in_memory.in_adapterhub(in_file)
    }
}
