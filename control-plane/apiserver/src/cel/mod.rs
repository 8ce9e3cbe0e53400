//! The expression language of Kubernetes, as far as it goes beyond what the evaluator knows.

mod check;
mod functions;
mod maps;
mod names;
mod program;
mod references;
mod syntax;
pub(crate) mod types;

pub(crate) use check::check;
pub(crate) use names::escaped;
pub(crate) use program::{compile, compile_over, context, with_context};
pub(crate) use syntax::{plain, with_optional};
