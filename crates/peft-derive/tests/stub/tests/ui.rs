//! What is said to an author who uses the macros wrongly.

#[test]
fn wrong_uses_have_readable_errors() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
}
