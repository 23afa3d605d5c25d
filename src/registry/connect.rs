//! From `schema_registry:` to a client of that registry: who we are, and whom we trust.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use reqwest::{Certificate, Client, ClientBuilder, Identity, redirect};
use schema_registry_converter::async_impl::schema_registry::SrSettings;

use crate::config::plan::{ClientCertificate, Login, Registry};

use super::http::{Calls, Guard, Nodes, root_cause};

/// Settings no client can be made of. Names files, never what is in them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be used: {problem}")]
pub struct SettingsError {
    what: String,
    problem: String,
}

/// What a registry is called with, one way or the other: the same nodes, login and certificates.
#[derive(Debug)]
pub struct Connection {
    /// For the calls of schema_registry_converter.
    pub settings: SrSettings,
    /// For those it does not have.
    pub calls: Calls,
}

/// # Errors
/// [`SettingsError`]
pub fn connect(registry: &Registry) -> Result<Connection, SettingsError> {
    let nodes = Arc::new(Nodes::new(&registry.urls).map_err(|(index, problem)| SettingsError {
        what: format!("URL {} of `schema_registry`", index + 1),
        problem,
    })?);
    let first = registry.urls.first().cloned().unwrap_or_default();
    let plain = client(registry)?.timeout(registry.timeout).build().map_err(unusable)?;
    let guarded = reqwest_middleware::ClientBuilder::new(plain).with(Guard(nodes.clone())).build();
    let calls = Calls::new(guarded, &first, registry.login.clone());
    let mut builder = SrSettings::new_builder(first);
    builder.set_timeout(registry.timeout).with_middleware(Guard(nodes));
    match &registry.login {
        Some(Login::Basic { username, password }) => {
            builder.set_basic_authorization(username, Some(password));
        }
        Some(Login::Bearer { token }) => {
            builder.set_token_authorization(token);
        }
        None => {}
    }
    let settings = builder.build_with(client(registry)?).map_err(unusable)?;
    Ok(Connection { settings, calls })
}

fn unusable(error: impl Error + 'static) -> SettingsError {
    SettingsError { what: "`schema_registry`".to_owned(), problem: root_cause(&error) }
}

/// The client below both kinds of calls.
fn client(registry: &Registry) -> Result<ClientBuilder, SettingsError> {
    // A registry does not redirect; what it answers must not decide whom we send the password to.
    let mut builder = Client::builder().redirect(redirect::Policy::none());
    if let Some(path) = &registry.ca_file {
        builder = builder.tls_certs_merge(authorities(path)?);
    }
    if let Some(files) = &registry.client_certificate {
        builder = builder.identity(identity(files)?);
    }
    Ok(builder)
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, SettingsError> {
    fs::read(path).map_err(|error| SettingsError {
        what: format!("`{}` (`schema_registry.{key}`)", path.display()),
        problem: error.to_string(),
    })
}

/// The certificates of `ca_file`.
fn authorities(path: &Path) -> Result<Vec<Certificate>, SettingsError> {
    let unusable = |problem: String| SettingsError {
        what: format!("`{}` (`schema_registry.ca_file`)", path.display()),
        problem,
    };
    let pem = read("ca_file", path)?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(root_cause(&error)))?;
    if certificates.is_empty() {
        return Err(unusable("there is no certificate in PEM form in it".to_owned()));
    }
    // They are only parsed when a client is built, and that error would not name the file: build one here.
    let trial = Client::builder().tls_certs_only(certificates.clone()).build();
    trial.map_err(|error| unusable(root_cause(&error)))?;
    Ok(certificates)
}

/// Our certificate and its key.
fn identity(files: &ClientCertificate) -> Result<Identity, SettingsError> {
    let mut pem = read("client_cert_file", &files.certificate)?;
    pem.push(b'\n');
    pem.extend(read("client_key_file", &files.key)?);
    let unusable = |error: reqwest::Error| SettingsError {
        what: format!(
            "`{}` with `{}` (`client_cert_file` and `client_key_file` of `schema_registry`)",
            files.certificate.display(),
            files.key.display()
        ),
        problem: format!("{} (both are PEM, the key not encrypted)", root_cause(&error)),
    };
    let identity = Identity::from_pem(&pem).map_err(unusable)?;
    // As with authorities: whether they belong together is only seen here.
    Client::builder().tls_certs_only([]).identity(identity.clone()).build().map_err(unusable)?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    /// A root certificate that systems trust.
    const ROOT: &str = "\
-----BEGIN CERTIFICATE-----
MIIBtjCCAVugAwIBAgITBmyf1XSXNmY/Owua2eiedgPySjAKBggqhkjOPQQDAjA5
MQswCQYDVQQGEwJVUzEPMA0GA1UEChMGQW1hem9uMRkwFwYDVQQDExBBbWF6b24g
Um9vdCBDQSAzMB4XDTE1MDUyNjAwMDAwMFoXDTQwMDUyNjAwMDAwMFowOTELMAkG
A1UEBhMCVVMxDzANBgNVBAoTBkFtYXpvbjEZMBcGA1UEAxMQQW1hem9uIFJvb3Qg
Q0EgMzBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCmXp8ZBf8ANm+gBG1bG8lKl
ui2yEujSLtf6ycXYqm0fc4E7O5hrOXwzpcVOho6AF2hiRVd9RFgdszflZwjrZt6j
QjBAMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgGGMB0GA1UdDgQWBBSr
ttvXBp43rDCGB5Fwx5zEGbF4wDAKBggqhkjOPQQDAgNJADBGAiEA4IWSoxe3jfkr
BqWTrBqYaGFy+uGh0PsceGCmQ5nFuMQCIQCcAu/xlJyzlvnrxir4tiz+OpAUFteM
YyRIHN8wfdVoOw==
-----END CERTIFICATE-----
";

    fn plan() -> Registry {
        Registry::at("https://localhost:1".to_owned(), Duration::from_secs(5))
    }

    fn file(dir: &tempfile::TempDir, name: &str, content: &str) -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn authorities_are_read_and_a_file_without_any_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let good = file(&dir, "good.pem", &ROOT.repeat(2));
        connect(&Registry { ca_file: Some(good), ..plan() }).unwrap();
        let cut = ROOT.replace("MIIBtjCC", "");
        for content in ["", "hunter2", &cut, &ROOT[..200]] {
            let bad = file(&dir, "bad.pem", content);
            let error = connect(&Registry { ca_file: Some(bad), ..plan() }).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("bad.pem") && shown.contains("ca_file"), "{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let none = dir.path().join("none.pem");
        let error = connect(&Registry { ca_file: Some(none), ..plan() }).unwrap_err();
        assert!(error.to_string().contains("none.pem"), "{error}");
    }

    #[test]
    fn a_client_certificate_needs_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let certificate = file(&dir, "cert.pem", ROOT);
        let key = "-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END PRIVATE KEY-----\n";
        for content in ["", "hunter2", ROOT, key] {
            let files =
                ClientCertificate { certificate: certificate.clone(), key: file(&dir, "key.pem", content) };
            let registry = Registry { client_certificate: Some(files), ..plan() };
            let error = connect(&registry).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("cert.pem") && shown.contains("key.pem"), "{shown}");
            assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVyMg"), "{shown}");
        }
    }
}
