//! What is wrong with a file, where, and what to do.

use super::tree::Span;

/// One problem in `routes.yaml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub span: Span,
    pub message: String,
    pub hint: Option<String>,
}

impl Problem {
    pub fn new(span: Span, message: impl Into<String>) -> Self {
        Self { span, message: message.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// All problems, in the order of the file: `file:line:column: message`, the line, a mark, the hint.
pub fn render(file: &str, text: &str, problems: &[Problem]) -> String {
    let mut problems: Vec<&Problem> = problems.iter().collect();
    problems.sort_by_key(|problem| (problem.span.line, problem.span.column));
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    for problem in problems {
        let Span { line, column } = problem.span;
        out.push_str(&format!("{file}:{line}:{column}: {}\n", problem.message));
        if let Some(content) = lines.get(line.saturating_sub(1)) {
            let shown = redact(content);
            out.push_str(&format!("  {line:>4} | {shown}\n"));
            out.push_str(&format!("       | {}^\n", " ".repeat(column.saturating_sub(1))));
        }
        if let Some(hint) = &problem.hint {
            out.push_str(&format!("  hint: {hint}\n"));
        }
        out.push('\n');
    }
    out
}

/// A line as it may be shown: values of keys that hold secrets are left out.
fn redact(line: &str) -> String {
    const SECRET: [&str; 10] = [
        "password",
        "secret",
        "token",
        "sasl.",
        "key.pem",
        "_auth",
        "headers:",
        "account_key",
        // A password that is not escaped may hide where it ends.
        "postgres://",
        "postgresql://",
    ];
    let lower = line.to_ascii_lowercase();
    // `https://user:password@host`.
    let authority = lower.split_once("://").and_then(|(_, rest)| rest.split(['/', ' ']).next());
    let has_user = authority.is_some_and(|authority| authority.contains('@'));
    // A key that is written wrong is just what is shown.
    let is_nearly = |word: &str| {
        [("password", 2), ("secret", 1), ("token", 1)]
            .iter()
            .any(|(key, mistakes)| strsim::osa_distance(key, word) <= *mistakes)
    };
    let is_secret = has_user
        || SECRET.iter().any(|word| lower.contains(word))
        || lower.split(|char: char| !char.is_ascii_alphanumeric()).any(is_nearly);
    match line.split_once(':') {
        Some((key, value)) if !value.trim().is_empty() && is_secret => format!("{key}: …"),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_shown_and_secrets_are_not() {
        let text = "a: 1\nsasl.password: hunter2\n";
        let problems = [
            Problem::new(Span { line: 2, column: 1 }, "not known").hint("remove it"),
            Problem::new(Span { line: 1, column: 4 }, "not text"),
        ];
        assert_eq!(
            render("routes.yaml", text, &problems),
            "routes.yaml:1:4: not text\n     1 | a: 1\n       |    ^\n\n\
             routes.yaml:2:1: not known\n     2 | sasl.password: …\n       | ^\n  hint: remove it\n\n"
        );
    }

    #[test]
    fn values_of_keys_that_are_written_wrong_are_not_shown() {
        for line in [
            "  pasword: hunter2",
            "Passwort: hunter2",
            "basic_auth: {user: a, pwd: hunter2}",
            "  bearer_tokn: hunter2",
            "  url: postgresql://u:a/hunter2@h/d",
        ] {
            assert!(!redact(line).contains("hunter2"), "{line}");
        }
        for line in ["  topics: [a]", "  one: SELECT author FROM batch"] {
            assert_eq!(redact(line), line);
        }
    }
}
