//! Prometheus' text format (0.0.4), for scrapers that do not ask for OpenMetrics.

use std::fmt::Write as _;
use std::mem;

/// Says in the older format what is told in OpenMetrics 1.0, where the name of a family lacks the ending of its samples'.
pub(super) fn of_open_metrics(open: &str) -> String {
    let mut plain = String::with_capacity(open.len());
    // Waits for its family's type, which comes next.
    let mut help = "";
    for line in open.lines() {
        if let Some(line) = line.strip_prefix("# HELP ") {
            help = line;
        } else if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').unwrap_or((line, "unknown"));
            let (ending, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            let about = mem::take(&mut help).strip_prefix(name).unwrap_or_default();
            let _ = writeln!(plain, "# HELP {name}{ending}{about}");
            let _ = writeln!(plain, "# TYPE {name}{ending} {kind}");
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            let _ = writeln!(plain, "{line}");
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_called_as_their_samples() {
        let open = "# HELP a What a is.\n# TYPE a counter\n# UNIT a bytes\na_total{k=\"v\"} 1\n\
            # HELP b B.\n# TYPE b info\nb_info{v=\"1\"} 1\n\
            # HELP c C.\n# TYPE c histogram\nc_sum 0.5\nc_count 1\nc_bucket{le=\"+Inf\"} 1\n\
            # HELP d D.\n# TYPE d unknown\nd 2\n# EOF\n";
        let plain = "# HELP a_total What a is.\n# TYPE a_total counter\na_total{k=\"v\"} 1\n\
            # HELP b_info B.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n\
            # HELP c C.\n# TYPE c histogram\nc_sum 0.5\nc_count 1\nc_bucket{le=\"+Inf\"} 1\n\
            # HELP d D.\n# TYPE d untyped\nd 2\n";
        assert_eq!(of_open_metrics(open), plain);
    }
}
