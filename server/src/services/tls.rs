//! TLS for the client port: its certificate, and the authority that clients' certificates must come from, if they need any.

use std::{path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::config::ClientTls;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("TLS for clients cannot be set up: {path}: {reason}")]
pub struct TlsError {
    path: String,
    reason: String,
}

/// Reads the files that the configuration names.
pub fn load(tls: &ClientTls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed(&tls.cert, error))?;
    let builder = match &tls.ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(ca)? {
                roots.add(certificate).map_err(|error| failed(ca, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| failed(ca, error))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| failed(&tls.key, error))?;
    let mut config =
        builder.with_single_cert(certificates(&tls.cert)?, key).map_err(|error| failed(&tls.cert, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => Err(failed(path, "there is no certificate in it")),
        found => found.map_err(|error| failed(path, error)),
    }
}

fn failed(path: &Path, reason: impl ToString) -> TlsError {
    TlsError { path: path.display().to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_empty_file_is_named() {
        let missing = ClientTls { ca: None, cert: "/nonexistent/cert.pem".into(), key: "/nonexistent/key.pem".into() };
        let error = load(&missing).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/key.pem"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("ca.pem");
        std::fs::write(&empty, "").unwrap();
        let error = load(&ClientTls { ca: Some(empty), ..missing }).unwrap_err().to_string();
        assert!(error.contains("ca.pem: there is no certificate in it"), "{error}");
    }
}
