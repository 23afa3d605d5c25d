//! `${VAR}`, `${VAR:-default}` and `${file:path}` in values, after parsing.
//!
//! Never textually: what a variable holds can not become YAML. What was expanded is never shown; problems
//! speak of the text in the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where `${…}` is looked up.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// `${file:…}` is relative to this: the directory of the file.
    root: PathBuf,
}

impl Environment {
    pub fn new(variables: impl IntoIterator<Item = (String, String)>, root: &Path) -> Self {
        Self { variables: variables.into_iter().collect(), root: root.to_owned() }
    }

    /// The variables of this process.
    pub fn of_process(root: &Path) -> Self {
        // A variable that is not UTF-8 cannot be named in YAML either.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::new(variables, root)
    }

    /// With these variables, whatever they were before.
    #[must_use]
    pub fn with(mut self, variables: &[(String, String)]) -> Self {
        self.variables.extend(variables.iter().cloned());
        self
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `text` with everything expanded. `$$` is a dollar sign.
    ///
    /// # Errors
    /// What is missing, without any value.
    pub fn expand(&self, text: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let (name, after) = after
                    .split_once('}')
                    .ok_or_else(|| "`${` without its `}`; a dollar sign is written `$$`".to_owned())?;
                out.push_str(&self.look_up(name)?);
                rest = after;
            } else {
                out.push('$');
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    fn look_up(&self, name: &str) -> Result<String, String> {
        if let Some(path) = name.strip_prefix("file:") {
            let path = self.root.join(path);
            let content = std::fs::read_to_string(&path)
                .map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
            return Ok(content.trim_end_matches(['\r', '\n']).to_owned());
        }
        let (name, default) = match name.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (name, None),
        };
        match self.variables.get(name).filter(|value| !value.is_empty()) {
            Some(value) => Ok(value.clone()),
            None => default
                .map(str::to_owned)
                .ok_or_else(|| format!("the environment variable `{name}` is not set")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_defaults_files_and_dollars() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "s3cr3t\n").unwrap();
        let variables = [("A".to_owned(), "1".to_owned()), ("E".to_owned(), String::new())];
        let environment = Environment::new(variables, dir.path());
        let expand = |text| environment.expand(text);
        assert_eq!(expand("x${A}y${B:-2}${E:-3}"), Ok("x1y23".to_owned()));
        assert_eq!(expand("${file:secret}!"), Ok("s3cr3t!".to_owned()));
        assert_eq!(expand("$$5 a$b ^x$"), Ok("$5 a$b ^x$".to_owned()));
        assert!(expand("${B}").unwrap_err().contains("`B` is not set"));
        assert!(expand("${A").unwrap_err().contains("without its"));
        assert!(expand("${file:none}").unwrap_err().contains("cannot read"));
    }
}
