//! The expression language of Kubernetes, as far as it goes beyond what the evaluator knows.

pub(crate) mod maps;
mod syntax;

pub(crate) use syntax::plain;
