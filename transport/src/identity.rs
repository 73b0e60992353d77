//! Certificates: the cluster's authority, what it issues, and loading what was issued.
//!
//! A folder holds `ca.crt`, and where certificates are issued also `ca.key`; a store's folder holds `ca.crt`, `store.crt` and
//! `store.key`. Keys are ECDSA P-256 in PKCS#8, readable by their owner only. A store's certificate carries the DNS name
//! `flotilla-store`, a client's `flotilla-client`: both are the cluster's, but only a store may use the stores' port. Which
//! store it is, is said in the hello, not in the certificate.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// DNS name in every store's certificate.
pub const STORE_NAME: &str = "flotilla-store";
/// DNS name in every client's certificate.
pub const CLIENT_NAME: &str = "flotilla-client";

pub const CA_CERT_FILE: &str = "ca.crt";
pub const CA_KEY_FILE: &str = "ca.key";
pub const STORE_CERT_FILE: &str = "store.crt";
pub const STORE_KEY_FILE: &str = "store.key";

const CA_VALIDITY: Duration = Duration::from_secs(20 * 365 * DAY_SECS);
const LEAF_VALIDITY: Duration = Duration::from_secs(5 * 365 * DAY_SECS);
/// Certificates are valid from a day ago, for machines whose clocks are behind.
const BACKDATING: Duration = Duration::from_secs(DAY_SECS);
const DAY_SECS: u64 = 24 * 3600;

/// Why an authority could not be made, loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{path} exists already")]
    Exists { path: PathBuf },
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot parse {path}: {reason}")]
    Parse { path: PathBuf, reason: String },
    #[error("{key} is not the key of {cert}, or the authority was not made by flotilla: {reason}")]
    Mismatch { cert: PathBuf, key: PathBuf, reason: String },
    #[error("cannot issue a certificate for {name:?}: {reason}")]
    Issue { name: String, reason: String },
}

/// Why credentials could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot parse {path}: {reason}")]
    Parse { path: PathBuf, reason: String },
    #[error("{key} is not the key of {cert}")]
    KeyMismatch { cert: PathBuf, key: PathBuf },
    #[error("credentials cannot be used: {reason}")]
    Unusable { reason: String },
}

/// The cluster's certificate authority: whoever has its key can make stores of the cluster.
pub struct Authority {
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority, in memory.
    pub fn generate() -> Result<Authority, AuthorityError> {
        let issuing =
            |error: rcgen::Error| AuthorityError::Issue { name: "the authority".into(), reason: error.to_string() };
        let key = KeyPair::generate().map_err(issuing)?;
        let params = authority_params();
        let cert_pem = params.self_signed(&key).map_err(issuing)?.pem();
        Ok(Authority { cert_pem, key_pem: key.serialize_pem(), issuer: Issuer::new(params, key) })
    }

    /// A new authority in `dir`, which is made if need be. Never overwrites one.
    pub fn create(dir: &Path) -> Result<Authority, AuthorityError> {
        let authority = Authority::generate()?;
        fs::create_dir_all(dir).map_err(|source| AuthorityError::Io { action: "create", path: dir.into(), source })?;
        for (file, content, secret) in
            [(CA_KEY_FILE, &authority.key_pem, true), (CA_CERT_FILE, &authority.cert_pem, false)]
        {
            let path = dir.join(file);
            write_new(&path, content, secret).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => AuthorityError::Exists { path: path.clone() },
                _ => AuthorityError::Io { action: "write", path: path.clone(), source },
            })?;
        }
        Ok(authority)
    }

    /// The authority in `dir`, made by [`Authority::create`].
    pub fn load(dir: &Path) -> Result<Authority, AuthorityError> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| AuthorityError::Io { action: "read", path: path.into(), source })
        };
        let (cert, key) = (dir.join(CA_CERT_FILE), dir.join(CA_KEY_FILE));
        let (cert_pem, key_pem) = (read(&cert)?, read(&key)?);
        let key_pair = KeyPair::from_pem(&key_pem)
            .map_err(|error| AuthorityError::Parse { path: key.clone(), reason: error.to_string() })?;
        let authority = Authority { cert_pem, key_pem, issuer: Issuer::new(authority_params(), key_pair) };
        // The certificate is not parsed but tried: what the key signs must verify against it.
        let trial = authority.issue_store(&[])?;
        verify(&trial.cert_pem, &authority.cert_pem).map_err(|reason| AuthorityError::Mismatch {
            cert,
            key,
            reason,
        })?;
        Ok(authority)
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// A certificate for one or all stores. `hosts` (DNS names or IP addresses) are what clients dial, for TLS on the client port.
    pub fn issue_store(&self, hosts: &[String]) -> Result<Credentials, AuthorityError> {
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(STORE_NAME, "store", hosts, &usages, Validity::default())
    }

    /// A certificate for a client, which identifies itself as `name`.
    pub fn issue_client(&self, name: &str) -> Result<Credentials, AuthorityError> {
        self.issue(CLIENT_NAME, name, &[], &[ExtendedKeyUsagePurpose::ClientAuth], Validity::default())
    }

    fn issue(
        &self,
        role: &str,
        name: &str,
        hosts: &[String],
        usages: &[ExtendedKeyUsagePurpose],
        validity: Validity,
    ) -> Result<Credentials, AuthorityError> {
        let issuing = |error: rcgen::Error| AuthorityError::Issue { name: name.into(), reason: error.to_string() };
        let names: Vec<String> = std::iter::once(role.to_owned()).chain(hosts.iter().cloned()).collect();
        let mut params = CertificateParams::new(names).map_err(issuing)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "flotilla");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = validity.from.into();
        params.not_after = validity.until.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(issuing)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(issuing)?;
        Ok(Credentials { ca_pem: self.cert_pem.clone(), cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// A store's certificate that ran out an hour ago.
    #[cfg(test)]
    pub(crate) fn issue_expired_store(&self) -> Credentials {
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let until = SystemTime::now() - Duration::from_secs(3600);
        let validity = Validity { from: until - Duration::from_secs(3600), until };
        self.issue(STORE_NAME, "store", &[], &usages, validity).expect("the authority can issue")
    }
}

struct Validity {
    from: SystemTime,
    until: SystemTime,
}

impl Default for Validity {
    fn default() -> Self {
        let now = SystemTime::now();
        Validity { from: now - BACKDATING, until: now + LEAF_VALIDITY }
    }
}

/// A certificate with its key and the authority that both sides trust, as PEM.
#[derive(Clone)]
pub struct Credentials {
    pub ca_pem: String,
    pub cert_pem: String,
    pub key_pem: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads and checks three files.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Credentials, CredentialsError> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| CredentialsError::Io {
                action: "read",
                path: path.into(),
                source,
            })
        };
        let credentials = Credentials { ca_pem: read(ca)?, cert_pem: read(cert)?, key_pem: read(key)? };
        credentials.parse_as(ca, cert, key)?;
        Ok(credentials)
    }

    /// Reads `ca.crt`, `store.crt` and `store.key` of one folder.
    pub fn load_store(dir: &Path) -> Result<Credentials, CredentialsError> {
        Credentials::load(&dir.join(CA_CERT_FILE), &dir.join(STORE_CERT_FILE), &dir.join(STORE_KEY_FILE))
    }

    /// Writes `ca.crt`, `<name>.crt` and `<name>.key` into a folder, over what is there. A store's name is `store`.
    pub fn write(&self, dir: &Path, name: &str) -> Result<(), CredentialsError> {
        fs::create_dir_all(dir).map_err(|source| CredentialsError::Io {
            action: "create",
            path: dir.into(),
            source,
        })?;
        let files = [
            (CA_CERT_FILE.to_owned(), &self.ca_pem, false),
            (format!("{name}.crt"), &self.cert_pem, false),
            (format!("{name}.key"), &self.key_pem, true),
        ];
        for (file, content, secret) in files {
            let path = dir.join(file);
            let written = match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => write_new(&path, content, secret),
            };
            written.map_err(|source| CredentialsError::Io { action: "write", path, source })?;
        }
        Ok(())
    }

    pub(crate) fn parse(&self) -> Result<ParsedCredentials, CredentialsError> {
        self.parse_as(Path::new(CA_CERT_FILE), Path::new("certificate"), Path::new("key"))
    }

    fn parse_as(&self, ca: &Path, cert: &Path, key: &Path) -> Result<ParsedCredentials, CredentialsError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |reason: String| CredentialsError::Parse { path, reason }
        };
        let authorities = certificates(&self.ca_pem).map_err(failed(ca))?;
        let chain = certificates(&self.cert_pem).map_err(failed(cert))?;
        let key_der =
            PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|error| failed(key)(error.to_string()))?;
        EndEntityCert::try_from(&chain[0]).map_err(|error| failed(cert)(error.to_string()))?;
        let signer = ring::sign::any_supported_type(&key_der).map_err(|error| failed(key)(error.to_string()))?;
        CertifiedKey::new(chain.clone(), signer)
            .keys_match()
            .map_err(|_| CredentialsError::KeyMismatch { cert: cert.into(), key: key.into() })?;
        Ok(ParsedCredentials { authorities, chain, key: key_der })
    }
}

/// Credentials in the form that TLS takes.
pub(crate) struct ParsedCredentials {
    pub authorities: Vec<CertificateDer<'static>>,
    /// Invariant: not empty; the leaf is first and `key` is its key.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

fn authority_params() -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "flotilla");
    params.distinguished_name.push(DnType::CommonName, "flotilla cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BACKDATING).into();
    params.not_after = (now + CA_VALIDITY).into();
    params
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("no certificate in it".into()) } else { Ok(certificates) }
}

fn verify(cert_pem: &str, ca_pem: &str) -> Result<(), String> {
    let (certs, authorities) = (certificates(cert_pem)?, certificates(ca_pem)?);
    let anchor = anchor_from_trusted_cert(&authorities[0]).map_err(|error| error.to_string())?;
    EndEntityCert::try_from(&certs[0])
        .and_then(|leaf| {
            let algorithms = ring::default_provider().signature_verification_algorithms.all;
            leaf.verify_for_usage(algorithms, &[anchor], &[], UnixTime::now(), KeyUsage::server_auth(), None, None)
                .map(drop)
        })
        .map_err(|error| error.to_string())
}

fn write_new(path: &Path, content: &str, secret: bool) -> io::Result<()> {
    let mode = if secret { 0o600 } else { 0o644 };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_authority_survives_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let created = Authority::create(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(CA_KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(
            matches!(Authority::create(dir.path()), Err(AuthorityError::Exists { path }) if path.ends_with(CA_KEY_FILE))
        );

        let loaded = Authority::load(dir.path()).unwrap();
        let store = loaded.issue_store(&["db.example".into(), "192.0.2.7".into()]).unwrap();
        verify(&store.cert_pem, created.cert_pem()).unwrap();

        store.write(dir.path(), "store").unwrap();
        store.write(dir.path(), "store").unwrap();
        let mode = fs::metadata(dir.path().join(STORE_KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Credentials::load_store(dir.path()).unwrap().cert_pem, store.cert_pem);
    }

    #[test]
    fn the_key_of_another_authority_is_refused() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::create(one.path()).unwrap();
        Authority::create(two.path()).unwrap();
        fs::copy(two.path().join(CA_KEY_FILE), one.path().join(CA_KEY_FILE)).unwrap();
        assert!(matches!(Authority::load(one.path()), Err(AuthorityError::Mismatch { .. })));
    }

    #[test]
    fn bad_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path()).unwrap();
        authority.issue_store(&[]).unwrap().write(dir.path(), "store").unwrap();
        let load = || Credentials::load_store(dir.path()).expect_err("a file is bad").to_string();

        authority.issue_store(&[]).unwrap().write(dir.path(), "other").unwrap();
        fs::copy(dir.path().join("other.key"), dir.path().join(STORE_KEY_FILE)).unwrap();
        assert!(load().contains("store.key is not the key of"), "{}", load());
        fs::write(dir.path().join(STORE_KEY_FILE), "garbage").unwrap();
        assert!(load().contains("store.key"), "{}", load());
        fs::write(dir.path().join(STORE_CERT_FILE), "garbage").unwrap();
        assert!(load().contains("store.crt"), "{}", load());
        fs::remove_file(dir.path().join(CA_CERT_FILE)).unwrap();
        assert!(load().contains("cannot read") && load().contains("ca.crt"), "{}", load());
    }

    #[test]
    fn credentials_do_not_print_their_key() {
        let credentials = Authority::generate().unwrap().issue_client("alice").unwrap();
        assert!(!format!("{credentials:?}").contains("KEY"));
    }
}
