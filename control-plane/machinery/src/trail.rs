//! Where in a document a walk is: a list on the stack that costs nothing unless it is printed.

use std::fmt::Write as _;

#[derive(Clone, Copy)]
pub(crate) struct Trail<'a> {
    parent: Option<&'a Trail<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    /// A map's key, which Go does not count as a field.
    Entry(&'a str),
    Index(usize),
}

impl<'a> Trail<'a> {
    pub(crate) const ROOT: Trail<'static> = Trail {
        parent: None,
        step: Step::Root,
    };

    pub(crate) fn key(&'a self, key: &'a str) -> Self {
        Self {
            parent: Some(self),
            step: Step::Key(key),
        }
    }

    pub(crate) fn entry(&'a self, key: &'a str) -> Self {
        Self {
            parent: Some(self),
            step: Step::Entry(key),
        }
    }

    pub(crate) fn index(&'a self, index: usize) -> Self {
        Self {
            parent: Some(self),
            step: Step::Index(index),
        }
    }

    /// `spec.containers[0].name`
    pub(crate) fn path(&self) -> String {
        let mut path = String::new();
        self.write(&mut path, true);
        path
    }

    /// `spec.containers.name`, as Go's JSON decoder names fields.
    pub(crate) fn fields(&self) -> String {
        let mut path = String::new();
        self.write(&mut path, false);
        path
    }

    fn write(&self, path: &mut String, indices: bool) {
        if let Some(parent) = self.parent {
            parent.write(path, indices);
        }
        match self.step {
            Step::Root => {}
            Step::Entry(_) if !indices => {}
            Step::Key(key) | Step::Entry(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Step::Index(index) if indices => {
                let _ = write!(path, "[{index}]");
            }
            Step::Index(_) => {}
        }
    }
}
