//! The grammar of label selectors in query parameters.

use super::{Operator, Requirement, SelectorError};

const BINARY_OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

/// Tokens and the text they were read from; the end is an empty text.
struct Tokens<'a> {
    rest: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A key or a value, which may also be `in` or `notin`.
    Word(&'a str),
    /// One of `( ) , ! = == != > <`.
    Symbol(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Word(text) | Self::Symbol(text) => text,
            Self::End => "",
        }
    }
}

impl<'a> Tokens<'a> {
    fn peek(&self) -> Token<'a> {
        Tokens { rest: self.rest }.next()
    }

    fn next(&mut self) -> Token<'a> {
        let rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let word = |c: char| {
            !matches!(
                c,
                ' ' | '\t' | '\r' | '\n' | '(' | ')' | ',' | '!' | '=' | '>' | '<'
            )
        };
        let (token, length) = match rest.chars().next() {
            None => (Token::End, 0),
            Some(first) if word(first) => {
                let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
                (Token::Word(&rest[..length]), length)
            }
            Some(_) => {
                let length = if rest.starts_with("==") || rest.starts_with("!=") {
                    2
                } else {
                    1
                };
                (Token::Symbol(&rest[..length]), length)
            }
        };
        self.rest = &rest[length..];
        token
    }
}

fn expected(found: Token<'_>, what: &str) -> SelectorError {
    SelectorError(format!("found '{}', expected: {what}", found.text()))
}

pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut tokens = Tokens { rest: text };
    let mut requirements = Vec::new();
    loop {
        match tokens.peek() {
            Token::Word(_) | Token::Symbol("!") => {
                let requirement = requirement(&mut tokens).map_err(|error| {
                    SelectorError(format!("unable to parse requirement: {error}"))
                })?;
                requirements.push(requirement);
                match tokens.next() {
                    Token::End => return Ok(requirements),
                    Token::Symbol(",") => {
                        let after = tokens.peek();
                        if !matches!(after, Token::Word(_) | Token::Symbol("!")) {
                            return Err(expected(after, "identifier after ','"));
                        }
                    }
                    other => return Err(expected(other, "',' or 'end of string'")),
                }
            }
            Token::End => return Ok(requirements),
            other @ Token::Symbol(_) => {
                return Err(expected(other, "!, identifier, or 'end of string'"));
            }
        }
    }
}

fn requirement(tokens: &mut Tokens<'_>) -> Result<Requirement, SelectorError> {
    let mut first = tokens.next();
    let absent = first == Token::Symbol("!");
    if absent {
        first = tokens.next();
    }
    let Token::Word(key) = first else {
        return Err(expected(first, "identifier"));
    };
    if absent {
        return Requirement::new(key, Operator::DoesNotExist, Vec::new());
    }
    if matches!(tokens.peek(), Token::End | Token::Symbol(",")) {
        return Requirement::new(key, Operator::Exists, Vec::new());
    }
    let operator = tokens.next();
    match operator {
        Token::Word("in") => Requirement::new(key, Operator::In, set(tokens)?),
        Token::Word("notin") => Requirement::new(key, Operator::NotIn, set(tokens)?),
        Token::Symbol("=" | "==") => Requirement::new(key, Operator::In, vec![value(tokens)?]),
        Token::Symbol("!=") => Requirement::new(key, Operator::NotIn, vec![value(tokens)?]),
        Token::Symbol(">") => Requirement::new(key, Operator::GreaterThan, vec![value(tokens)?]),
        Token::Symbol("<") => Requirement::new(key, Operator::LessThan, vec![value(tokens)?]),
        other => Err(expected(other, BINARY_OPERATORS)),
    }
}

/// What follows `=`; it may be nothing.
fn value(tokens: &mut Tokens<'_>) -> Result<String, SelectorError> {
    match tokens.peek() {
        Token::End | Token::Symbol(",") => Ok(String::new()),
        Token::Word(word) => {
            tokens.next();
            Ok(word.to_owned())
        }
        other @ Token::Symbol(_) => Err(expected(other, "identifier")),
    }
}

/// `(a,b)`; an element may be empty.
fn set(tokens: &mut Tokens<'_>) -> Result<Vec<String>, SelectorError> {
    match tokens.next() {
        Token::Symbol("(") => {}
        // The one of upstream's sentences that has no comma.
        other => {
            return Err(SelectorError(format!(
                "found '{}' expected: '('",
                other.text()
            )));
        }
    }
    let mut values = Vec::new();
    if tokens.peek() == Token::Symbol(")") {
        tokens.next();
        return Ok(values);
    }
    loop {
        match tokens.peek() {
            Token::Word(word) => {
                tokens.next();
                values.push(word.to_owned());
            }
            Token::Symbol("," | ")") => values.push(String::new()),
            other => return Err(expected(other, "',', ')' or identifier")),
        }
        match tokens.next() {
            Token::Symbol(",") => {}
            Token::Symbol(")") => return Ok(values),
            other => return Err(expected(other, "')'")),
        }
    }
}
