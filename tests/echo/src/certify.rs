//! Certificates for proxies that have no CA to ask: of each name one, all signed by a CA that is forgotten at once.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// The name of the CA's file, and the name in its certificate: OpenSSL takes a certificate that is named like its issuer for self-signed.
const CA: &str = "ca";

/// Write certificates into a directory: `ca.pem`, and for each name `NAME.pem` with its key.
#[derive(clap::Args)]
pub(crate) struct Certify {
    /// The directory, which exists.
    directory: PathBuf,
    /// The DNS names, each in a certificate of its own.
    #[arg(required = true)]
    names: Vec<String>,
}

impl Certify {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut params = named(CA, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        write(&self.directory, CA, &params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);
        for name in &self.names {
            let key = KeyPair::generate()?;
            let certificate = named(name, std::slice::from_ref(name))?.signed_by(&key, &issuer)?;
            write(&self.directory, name, &(certificate.pem() + &key.serialize_pem()))?;
        }
        Ok(())
    }
}

fn named(common_name: &str, names: &[String]) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

/// Replaces the file; nobody else may read the key in it.
fn write(directory: &Path, name: &str, pem: &str) -> anyhow::Result<()> {
    let path = directory.join(format!("{name}.pem"));
    let writing = || -> std::io::Result<()> {
        if path.exists() {
            fs::remove_file(&path)?;
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(pem.as_bytes())
    };
    writing().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

    use super::*;

    #[test]
    fn each_certificate_is_of_its_name_alone_and_signed_by_the_ca() {
        let directory = std::env::temp_dir().join(format!("echo-certify-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let certify =
            Certify { directory: directory.clone(), names: ["one.test", "two.test"].map(Into::into).into() };
        // Twice: earlier files are replaced.
        certify.run().unwrap();
        certify.run().unwrap();
        let certificate =
            |name: &str| CertificateDer::from_pem_file(directory.join(format!("{name}.pem"))).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate(CA)).unwrap();
        let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build().unwrap();
        let verify = |of: &str, name: &str| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(&certificate(of), &[], &name, &[], UnixTime::now()).is_ok()
        };
        assert!(verify("one.test", "one.test") && verify("two.test", "two.test"));
        assert!(!verify("one.test", "two.test"));
        PrivateKeyDer::from_pem_file(directory.join("one.test.pem")).unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }
}
