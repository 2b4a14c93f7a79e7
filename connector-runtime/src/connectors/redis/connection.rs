//! How the sink reaches Redis: credentials and certificates read at each dial, and what an error asks for.

use connector_crds::systems::redis::RedisSink as Spec;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, TlsCertificates,
};
use secrecy::ExposeSecret;
use tokio::time::Duration;

use crate::secret::Secrets;
use crate::source::{ErrorClass, SystemError};

/// Longest wait for TCP, TLS and authentication together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for the answers to one batch; the client's own default of 500 ms is shorter than a snapshot's fork
/// on a large server.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How a certificate begins in PEM.
const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Splits `host:port`; an IPv6 address stands in brackets.
pub(super) fn host_and_port(address: &str) -> Result<(String, u16), SystemError> {
    let split = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match split {
        Some((host, port)) if !host.is_empty() => {
            Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
        }
        _ => Err(SystemError::Permanent {
            reason: "InvalidAddress",
            context: format!("address {address:?} is not host:port"),
        }),
    }
}

/// Dials, authenticates and selects the database. Reads the Secrets anew.
///
/// # Errors
/// Transient for everything that a change at the server or in a Secret may repair.
pub(super) async fn connect(spec: &Spec, secrets: &Secrets) -> Result<MultiplexedConnection, SystemError> {
    let (host, port) = host_and_port(&spec.address)?;
    let mut settings =
        RedisConnectionInfo::default().set_db(i64::from(spec.database)).set_skip_set_lib_name();
    if let Some(auth) = &spec.auth {
        if let Some(username) = &auth.username {
            settings = settings.set_username(username);
        }
        settings = settings.set_password(secrets.read(&auth.password)?.expose_secret());
    }
    let failed = |error: RedisError| disposition(&format!("connecting to {}", spec.address), error);
    let client = match &spec.tls {
        None => {
            let info = ConnectionAddr::Tcp(host, port).into_connection_info().map_err(failed)?;
            Client::open(info.set_redis_settings(settings)).map_err(failed)?
        }
        Some(tls) => {
            let read =
                |reference| secrets.read(reference).map(|text| text.expose_secret().as_bytes().to_vec());
            let client_tls = match (&tls.certificate, &tls.key) {
                (Some(certificate), Some(key)) => {
                    Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? })
                }
                (None, None) => None,
                (Some(_), None) | (None, Some(_)) => {
                    return Err(SystemError::Permanent {
                        reason: "InvalidTls",
                        context: "tls.certificate and tls.key need each other".into(),
                    });
                }
            };
            let root_cert = tls.ca.as_ref().map(read).transpose()?;
            if let (Some(reference), Some(pem)) = (&tls.ca, &root_cert)
                && memchr::memmem::find(pem, PEM_CERTIFICATE).is_none()
            {
                // The client would trust nothing and blame the server.
                return Err(SystemError::Transient {
                    context: format!(
                        "tls.ca: key {:?} of Secret {:?} holds no PEM certificate",
                        reference.key, reference.name
                    ),
                    class: ErrorClass::Auth,
                    cause: None,
                });
            }
            let address = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
            let info = address.into_connection_info().map_err(failed)?.set_redis_settings(settings);
            Client::build_with_tls(info, TlsCertificates { client_tls, root_cert }).map_err(failed)?
        }
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT));
    client.get_multiplexed_async_connection_with_config(&config).await.map_err(failed)
}

/// What an error asks for. `doing` says what was tried.
///
/// The server's first word decides: what a change of password, rights, memory or replication repairs is transient (the
/// sink dials again and reads its Secrets); what only another configuration repairs is permanent. No answer concerns
/// a single record: all fields of a batch go to the same hash.
pub(super) fn disposition(doing: &str, error: RedisError) -> SystemError {
    let code = error.code().unwrap_or_default().to_owned();
    let context = format!("{doing}: {error}");
    match code.as_str() {
        "WRONGTYPE" => SystemError::Permanent {
            reason: "WrongType",
            context: format!("{doing}: the key exists and is not a hash; delete it or choose another key"),
        },
        "MOVED" | "ASK" | "CROSSSLOT" => SystemError::Permanent {
            reason: "RedisCluster",
            context: format!(
                "{doing}: the server is part of a Redis Cluster, which this sink does not follow ({error})"
            ),
        },
        _ => SystemError::Transient { context, class: class(&code, &error), cause: Some(error.into()) },
    }
}

/// Class of a transient error.
fn class(code: &str, error: &RedisError) -> ErrorClass {
    match code {
        "NOAUTH" | "NOPERM" | "WRONGPASS" | "DENIED" => ErrorClass::Auth,
        "OOM" | "LOADING" | "BUSY" | "TRYAGAIN" | "MASTERDOWN" | "CLUSTERDOWN" | "NOREPLICAS" => {
            ErrorClass::Throttled
        }
        "" if error.kind() == ErrorKind::AuthenticationFailed => ErrorClass::Auth,
        "" if error.is_timeout() => ErrorClass::Timeout,
        "" if error.kind() == ErrorKind::Parse => ErrorClass::Protocol,
        "" => ErrorClass::Connect,
        _ if error.kind() == ErrorKind::AuthenticationFailed => ErrorClass::Auth,
        _ => ErrorClass::Rejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port() {
        assert_eq!(host_and_port("redis:6379").unwrap(), ("redis".into(), 6379));
        assert_eq!(host_and_port("[::1]:6379").unwrap(), ("::1".into(), 6379));
        for wrong in ["redis", ":6379", "redis:", "redis:70000"] {
            let error = host_and_port(wrong).unwrap_err().to_string();
            assert_eq!(error, format!("address {wrong:?} is not host:port"));
        }
    }
}
