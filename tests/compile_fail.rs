//! What must not compile: each file in `tests/ui` is one mistake that the types rule out.

#[test]
fn mistakes_do_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
