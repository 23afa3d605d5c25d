//! Reads a routes file, or prints what is wrong with it.

use std::path::{Path, PathBuf};

use crate::config::plan::Plan;
use crate::config::{Environment, Problem, read, render};

use crate::kafka;

use super::Failure;

/// A file that was read, kept to show places in it.
pub struct Loaded {
    pub plan: Plan,
    path: PathBuf,
    text: String,
}

impl Loaded {
    /// Problems found after reading, with their places in the file.
    pub fn render(&self, problems: &[Problem]) -> String {
        render(&self.path.display().to_string(), &self.text, problems)
    }

    /// Prints problems found after reading.
    pub fn print(&self, problems: &[Problem]) {
        print(&self.path, &self.text, problems);
    }
}

/// # Errors
/// [`Failure::Usage`] after all problems were printed.
pub fn load(path: &Path) -> Result<Loaded, Failure> {
    load_with(path, &[])
}

/// As [`load`], with variables that stand for those of the environment.
///
/// # Errors
/// [`Failure::Usage`] after all problems were printed.
pub fn load_with(path: &Path, variables: &[(String, String)]) -> Result<Loaded, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return Err(usage(&format!("cannot read `{}`: {error}", path.display()))),
    };
    let root = path.parent().unwrap_or_else(|| Path::new(""));
    match read(&text, &Environment::of_process(root).with(variables)) {
        Ok(plan) => {
            let clusters =
                plan.clusters.iter().map(|(name, cluster)| (format!("clusters: {name}: kafka:"), cluster));
            let mut is_refused = false;
            for (place, settings) in clusters.chain([("kafka:".to_owned(), &plan.kafka)]) {
                for (name, what) in kafka::refused_properties(settings) {
                    usage(&format!("`{name}` under `{place}` in `{}`: {what}", path.display()));
                    is_refused = true;
                }
            }
            if !is_refused { Ok(Loaded { plan, path: path.to_owned(), text }) } else { Err(Failure::Usage) }
        }
        Err(problems) => {
            print(path, &text, &problems);
            Err(Failure::Usage)
        }
    }
}

#[expect(clippy::print_stderr, reason = "problems go to stderr")]
fn print(path: &Path, text: &str, problems: &[Problem]) {
    eprint!("{}", render(&path.display().to_string(), text, problems));
    let count = problems.len();
    let word = if count == 1 { "problem" } else { "problems" };
    eprintln!("error: {count} {word} in `{}`", path.display());
}

/// Says what is wrong with the command line.
#[expect(clippy::print_stderr, reason = "problems go to stderr")]
pub fn usage(message: &str) -> Failure {
    eprintln!("error: {message}");
    Failure::Usage
}
