//! Clients of object stores, made of what the file says and of the environment.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, Error, RetryConfig};
use tokio::runtime::Handle;

use crate::config::plan::{ObjectLogin, ObjectStorage, Scheme};

use super::{Client, Objects, told};
use crate::sink::file::storage::Home;

/// The place that `path` names: a directory, or a prefix of an object store.
///
/// # Errors
/// If a client cannot be made of what is said.
pub fn home(path: &Path, storage: Option<&ObjectStorage>) -> io::Result<Home> {
    let Some(storage) = storage else {
        return Ok(path.into());
    };
    let shown = path.to_str().unwrap_or_default();
    let Some((scheme, bucket, prefix)) = Scheme::split(shown) else {
        let problem = format!("`{}` is no place in an object store", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    };
    let runtime = Handle::try_current().map_err(io::Error::other)?;
    let client = client(scheme, bucket, storage).map_err(|error| told::as_io(&error))?;
    let spool = storage.spool_dir.clone().unwrap_or_else(std::env::temp_dir);
    Ok(Home::new(Objects::new(path.to_owned(), prefix.to_owned(), client, runtime, spool)))
}

/// A busy store (503) and a connection that broke pass within seconds, or the lane waits by itself: a rebalance has to wait
/// for this. A single request has the client's own limit of 30 s, connecting 5 s.
fn retry() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(2),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: 6, retry_timeout: Duration::from_secs(20) }
}

fn client(scheme: Scheme, bucket: &str, storage: &ObjectStorage) -> Result<Arc<dyn Client>, Error> {
    Ok(match scheme {
        Scheme::S3 => Arc::new(s3(bucket, storage).build()?),
        Scheme::Google => Arc::new(google(bucket, storage).build()?),
        Scheme::Azure => Arc::new(azure(bucket, storage).build()?),
    })
}

fn s3(bucket: &str, storage: &ObjectStorage) -> AmazonS3Builder {
    // A login of the file is not mixed with parts of another one, as a session token of the environment would be.
    let mut builder = match storage.login {
        ObjectLogin::Environment => AmazonS3Builder::from_env(),
        _ => AmazonS3Builder::new(),
    };
    builder = builder.with_bucket_name(bucket).with_retry(retry());
    if let ObjectLogin::AccessKey { id, secret, session_token } = &storage.login {
        builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        if let Some(token) = session_token {
            builder = builder.with_token(token);
        }
    }
    if storage.login == ObjectLogin::Anonymous {
        builder = builder.with_skip_signature(true);
    }
    if let Some(region) = &storage.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &storage.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if storage.allows_http {
        builder = builder.with_allow_http(true);
    }
    if storage.is_virtual_hosted {
        builder = builder.with_config(AmazonS3ConfigKey::VirtualHostedStyleRequest, "true");
    }
    builder
}

fn google(bucket: &str, storage: &ObjectStorage) -> GoogleCloudStorageBuilder {
    let mut builder = match storage.login {
        ObjectLogin::Environment => GoogleCloudStorageBuilder::from_env(),
        _ => GoogleCloudStorageBuilder::new(),
    };
    builder = builder.with_bucket_name(bucket).with_retry(retry());
    if let ObjectLogin::ServiceAccount { file } = &storage.login {
        builder = builder.with_config(GoogleConfigKey::ServiceAccount, file.to_string_lossy());
    }
    if storage.login == ObjectLogin::Anonymous {
        builder = builder.with_skip_signature(true);
    }
    if let Some(endpoint) = &storage.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    builder
}

fn azure(container: &str, storage: &ObjectStorage) -> MicrosoftAzureBuilder {
    let mut builder = match storage.login {
        ObjectLogin::Environment => MicrosoftAzureBuilder::from_env(),
        _ => MicrosoftAzureBuilder::new(),
    };
    builder = builder.with_container_name(container).with_retry(retry());
    if let ObjectLogin::Account { key, sas_token } = &storage.login {
        if let Some(key) = key {
            builder = builder.with_access_key(key);
        }
        if let Some(token) = sas_token {
            builder = builder.with_config(AzureConfigKey::SasKey, token);
        }
    }
    if storage.login == ObjectLogin::Anonymous {
        builder = builder.with_skip_signature(true);
    }
    if let Some(account) = &storage.account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = &storage.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if storage.allows_http {
        builder = builder.with_allow_http(true);
    }
    builder
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn each_scheme_has_its_client_and_a_wrong_login_is_told_without_it() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _within = runtime.enter();
        let key = ObjectLogin::AccessKey { id: "i".into(), secret: "hunter2".into(), session_token: None };
        let account = ObjectLogin::Account { key: Some("aHVudGVyMg==".into()), sas_token: None };
        for (path, login) in [("s3://bucket/out/a", key), ("az://container", account)] {
            let storage = ObjectStorage { login, account: Some("a".into()), ..ObjectStorage::default() };
            let home = home(Path::new(path), Some(&storage)).unwrap();
            assert_eq!(home.root(), Path::new(path));
            assert!(!format!("{home:?}{storage:?}").contains("hunter2"));
        }
        let file = PathBuf::from("/nowhere/account.json");
        let login = ObjectLogin::ServiceAccount { file };
        let storage = ObjectStorage { login, ..ObjectStorage::default() };
        assert!(home(Path::new("gs://bucket/x"), Some(&storage)).is_err());
        assert_eq!(home(Path::new("out"), None).unwrap().root(), Path::new("out"));
    }
}
