//! The expression language of Kubernetes, as far as it goes beyond what the evaluator knows.

mod check;
pub(crate) mod maps;
mod references;
mod syntax;
pub(crate) mod types;

pub(crate) use check::check;
pub(crate) use references::undeclared;
pub(crate) use syntax::plain;
