//! Compiled expressions, and what every expression may call.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use kube_cel::KubeCelExt as _;
use kube_cel::cel::{Context, ExecutionError, Program};
use parking_lot::Mutex;

use super::{functions, maps, references, syntax};

/// The longest expression that is compiled, in bytes; the parser works in the length's order.
const MAX_LENGTH: usize = 64 * 1024;

/// Programs are kept by their text: they are few, and run at every write.
const KEPT: usize = 1024;
static PROGRAMS: LazyLock<Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Mutex::default);

/// Functions of the variable `authorizer`, which is defined only where somebody asks.
const OF_AUTHORIZER: [&str; 14] = [
    "path",
    "group",
    "resource",
    "subresource",
    "namespace",
    "name",
    "fieldSelector",
    "labelSelector",
    "serviceAccount",
    "check",
    "allowed",
    "reason",
    "errored",
    "error",
];

/// The functions and types that every expression knows.
pub(crate) fn context() -> Context<'static> {
    let mut context = Context::default().with_all();
    maps::define(&mut context);
    functions::define(&mut context);
    context
}

thread_local! {
    static BASE: Context<'static> = context();
}

/// Runs something with [`context`], which takes longer to make than most expressions to evaluate.
pub(crate) fn with_context<R>(work: impl FnOnce(&Context<'static>) -> R) -> R {
    BASE.with(work)
}

/// The program of an expression.
///
/// # Errors
/// The compiler's sentence.
pub(crate) fn compile(expression: &str) -> Result<Arc<Program>, String> {
    if expression.len() > MAX_LENGTH {
        return Err(format!("expression is longer than {MAX_LENGTH} bytes"));
    }
    if let Some(program) = PROGRAMS.lock().get(expression) {
        return Ok(program.clone());
    }
    let plain = syntax::plain(expression);
    if plain.len() > MAX_LENGTH {
        return Err(format!("expression is longer than {MAX_LENGTH} bytes"));
    }
    let program = Program::compile(&plain).map_err(|e| format!("compilation failed: {e}"))?;
    // The evaluator panics at what it does not know.
    if let Some((name, what)) = references::undeclared(program.expression(), None) {
        return Err(refusal(expression, &name, &what));
    }
    let program = Arc::new(program);
    let mut programs = PROGRAMS.lock();
    if programs.len() >= KEPT {
        programs.clear();
    }
    programs.insert(expression.to_owned(), program.clone());
    Ok(program)
}

/// Whether an expression is one that names only these variables.
///
/// # Errors
/// The compiler's sentence.
pub(crate) fn compile_over(expression: &str, variables: &[&str]) -> Result<Arc<Program>, String> {
    let program = compile(expression)?;
    match references::undeclared(program.expression(), Some(variables)) {
        Some((name, what)) => Err(refusal(expression, &name, &what)),
        None => Ok(program),
    }
}

fn refusal(expression: &str, at: &str, what: &str) -> String {
    format!("compilation failed: {}", located(expression, at, what))
}

/// A fault as the compiler tells it: the line with the text that it is about, and a mark below.
pub(super) fn located(source: &str, at: &str, what: &str) -> String {
    let offset = find_word(source, at).or_else(|| source.find(at));
    let offset = offset.unwrap_or(0);
    let before = &source[..offset];
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let column = source[start..offset].chars().count();
    let text = source[start..].lines().next().unwrap_or_default();
    let dots = ".".repeat(column);
    format!(
        "ERROR: <input>:{line}:{}: {what}\n | {text}\n | {dots}^",
        column + 1
    )
}

/// Where a name stands that is not a part of a longer one.
fn find_word(text: &str, word: &str) -> Option<usize> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word).map(|(at, _)| at).find(|at| {
        let before = text[..*at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        let goes_on = |inner: bool, outer: Option<char>| inner && outer.is_some_and(in_name);
        !goes_on(word.starts_with(in_name), before) && !goes_on(word.ends_with(in_name), after)
    })
}

/// Whether the evaluator has a function of this name, which may be qualified (`sets.contains`).
pub(super) fn has_function(name: &str) -> bool {
    let method = name.rsplit('.').next().unwrap_or_default();
    if OF_AUTHORIZER.contains(&method) {
        return true;
    }
    // It keeps its functions to itself, but says of one that is not there that it is not.
    let Ok(program) = Program::compile(&format!("{name}()")) else {
        return true;
    };
    let answer = with_context(|context| program.execute(context));
    !matches!(answer, Err(ExecutionError::UndeclaredReference(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_libraries_are_known() {
        let names = "size matches contains startsWith endsWith getDate getDayOfMonth getDayOfWeek getDayOfYear getFullYear \
            getHours getMilliseconds getMinutes getMonth getSeconds bool bytes double duration dyn int string timestamp type \
            uint charAt format indexOf join lastIndexOf lowerAscii replace split substring trim upperAscii strings.quote \
            sets.contains sets.equivalent sets.intersects isSorted sum min max find findAll url isURL getScheme getHost \
            getHostname getPort getEscapedPath getQuery ip isIP ip.isCanonical family isUnspecified isLoopback \
            isLinkLocalMulticast isLinkLocalUnicast isGlobalUnicast cidr isCIDR containsIP containsCIDR masked prefixLength \
            quantity isQuantity asInteger asApproximateFloat isInteger sign isGreaterThan isLessThan compareTo add sub \
            semver isSemver major minor patch format.named validate optional.of optional.ofNonZeroValue optional.none \
            hasValue value or orValue check allowed";
        let unknown: Vec<_> = names
            .split_whitespace()
            .filter(|name| !has_function(name))
            .collect();
        assert_eq!(unknown, [""; 0]);
        for name in ["frobnicate", "sets.subtract", "self.frobnicate"] {
            assert!(!has_function(name), "{name}");
        }
    }

    #[test]
    fn an_unknown_function_is_refused_where_it_stands() {
        let refused = |text: &str| compile_over(text, &["self"]).unwrap_err();
        assert_eq!(
            refused("self.a == 1 && isBig(self.a)"),
            "compilation failed: ERROR: <input>:1:16: undeclared reference to 'isBig' (in container '')\n \
             | self.a == 1 && isBig(self.a)\n | ...............^"
        );
        assert!(refused("self.a.shrink(2) > 1").contains("undeclared reference to 'shrink'"));
        assert!(
            refused("sets.subtract(self.a, self.b)").contains("undeclared reference to 'subtract'")
        );
        assert!(compile_over("type(self.a) == string && dyn(self.b) > 1", &["self"]).is_ok());
    }
}
