//! Kafka Connect with Debezium's connector for PostgreSQL: one Java process, standalone, its offsets in a temporary folder.
//!
//! `scripts/fetch-test-services` downloads it, with Apicurio's converter for Avro, which needs Apicurio's registry.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::services::{SCRIPT, Service, check_java, free_ports, java, retry_if_port_taken, services_folder};
use super::{Postgres, Services};

const CONNECT: &str = "connect-4.3.1-debezium-3.6.1.Final";

/// The part of Apicurio's registry that speaks like Confluent's, and the one that the converter speaks to.
const CONFLUENT_API: &str = "/apis/ccompat/v7";
const OWN_API: &str = "/apis/registry/v2";

/// Whether it can be started here and used with these services; if not, why, with what to do about it.
pub fn are_there(services: &Services) -> Result<(), String> {
    check_java()?;
    let jars = installation()?.join("libs");
    if !jars.is_dir() {
        return Err(format!("no {}: run {SCRIPT} (once)", jars.display()));
    }
    if !services.registry.ends_with(CONFLUENT_API) {
        return Err(format!("{} is not Apicurio's registry, which its converter needs", services.registry));
    }
    Ok(())
}

fn installation() -> Result<PathBuf, String> {
    let root = services_folder()?;
    Ok(root.canonicalize().unwrap_or(root).join(CONNECT))
}

/// How changes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Converter {
    /// Values with their schemas beside them, keys without.
    Json,
    /// As Confluent's serialiser does, with subjects `<topic>-key` and `<topic>-value`.
    Avro,
}

/// A worker with one connector; it ends when it is dropped.
pub struct Connect {
    _service: Service,
}

impl Connect {
    /// Starts it; when it has connected, it takes a snapshot of what is in the tables of schema `public`.
    pub fn start(
        services: &Services,
        postgres: &Postgres,
        converter: Converter,
        prefix: &str,
    ) -> Result<Connect, String> {
        let installation = installation()?;
        retry_if_port_taken(|| {
            let [port] = free_ports()?;
            let mut service = Service::new("connect")?;
            let folder = service.folder().to_owned();
            let worker = write(
                &folder.join("worker.properties"),
                &worker(services, converter, &installation, &folder, port),
            )?;
            let connector =
                write(&folder.join("connector.properties"), &connector(postgres, converter, prefix))?;
            // No archive of classes: it is started seldom.
            let mut java = java(Path::new(""));
            java.arg("-Xmx384m")
                .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
                .arg("-cp")
                .arg(installation.join("libs").join("*"))
                .arg("org.apache.kafka.connect.cli.ConnectStandalone")
                .arg(worker)
                .arg(connector);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            service.run(java, |_| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())?;
            Ok(Connect { _service: service })
        })
    }
}

fn write(path: &Path, properties: &[(String, String)]) -> Result<PathBuf, String> {
    let lines: Vec<String> = properties.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    std::fs::write(path, lines.concat()).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    Ok(path.to_owned())
}

fn worker(
    services: &Services,
    converter: Converter,
    installation: &Path,
    folder: &Path,
    port: u16,
) -> Vec<(String, String)> {
    let mut properties = vec![
        ("bootstrap.servers".to_owned(), services.bootstrap.clone()),
        ("listeners".to_owned(), format!("http://127.0.0.1:{port}")),
        ("plugin.path".to_owned(), installation.join("plugins").display().to_string()),
        // Apicurio's converter has no service file.
        ("plugin.discovery".to_owned(), "hybrid_warn".to_owned()),
        ("offset.storage.file.filename".to_owned(), folder.join("offsets").display().to_string()),
        ("offset.flush.interval.ms".to_owned(), "1000".to_owned()),
    ];
    let registry = services.registry.replace(CONFLUENT_API, OWN_API);
    for side in ["key", "value"] {
        let options = match converter {
            Converter::Json => vec![
                ("", "org.apache.kafka.connect.json.JsonConverter"),
                (".schemas.enable", if side == "key" { "false" } else { "true" }),
            ],
            Converter::Avro => vec![
                ("", "io.apicurio.registry.utils.converter.AvroConverter"),
                (".apicurio.registry.url", registry.as_str()),
                (".apicurio.registry.auto-register", "true"),
                (".apicurio.registry.as-confluent", "true"),
                (".apicurio.registry.headers.enabled", "false"),
                (".apicurio.registry.use-id", "contentId"),
            ],
        };
        let named = |(name, value): (&str, &str)| (format!("{side}.converter{name}"), value.to_owned());
        properties.extend(options.into_iter().map(named));
    }
    properties
}

fn connector(postgres: &Postgres, converter: Converter, prefix: &str) -> Vec<(String, String)> {
    let port = postgres.port().to_string();
    let mut properties = vec![
        ("name", "changes"),
        ("connector.class", "io.debezium.connector.postgresql.PostgresConnector"),
        ("tasks.max", "1"),
        ("plugin.name", "pgoutput"),
        ("database.hostname", "127.0.0.1"),
        ("database.port", port.as_str()),
        ("database.user", "postgres"),
        ("database.password", "unused"),
        ("database.dbname", "postgres"),
        ("schema.include.list", "public"),
        ("publication.autocreate.mode", "filtered"),
        ("topic.prefix", prefix),
        // Truncations too.
        ("skipped.operations", "none"),
        // Topics beside those of the tables.
        ("provide.transaction.metadata", "true"),
        ("heartbeat.interval.ms", "1000"),
        ("poll.interval.ms", "100"),
        ("topic.creation.default.replication.factor", "1"),
        ("topic.creation.default.partitions", "1"),
    ];
    if converter == Converter::Avro {
        properties.push(("schema.name.adjustment.mode", "avro"));
    }
    properties.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
