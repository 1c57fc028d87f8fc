//! Keys that sign without showing themselves, good ones and others.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering::SeqCst},
    mpsc,
};

use super::*;

/// A device that holds a key of its own, in whatever state it is.
struct Token {
    key: Arc<dyn rustls::sign::SigningKey>,
    scheme: SignatureScheme,
    asked: AtomicU64,
    /// From the second signature on, what happens instead of one.
    then: Then,
}

enum Then {
    Signs,
    Fails,
    Panics,
    /// It answers once it is told to.
    Waits(Mutex<mpsc::Receiver<()>>),
}

impl SigningKey for Token {
    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        match &self.then {
            _ if self.asked.fetch_add(1, SeqCst) == 0 => {}
            Then::Signs => {}
            Then::Fails => return Err("the token was pulled out".into()),
            Then::Panics => panic!("on purpose"),
            Then::Waits(go) => drop(go.lock().unwrap().recv()),
        }
        let signer = self.key.choose_scheme(&[rustls::SignatureScheme::ECDSA_NISTP256_SHA256]);
        Ok(signer.ok_or("no P-256 key")?.sign(message)?)
    }
}

fn pems(authority: &Authority, identity: &Identity) -> [Vec<u8>; 2] {
    [authority.ca_pem(), pem::encode("CERTIFICATE", &identity.chain()[0]).into_bytes()]
}

fn token(identity: &Identity, scheme: SignatureScheme, then: Then) -> Arc<Token> {
    Arc::new(Token { key: Arc::clone(identity.signing()), scheme, asked: AtomicU64::new(0), then })
}

fn held(then: Then) -> (Authority, Identity, Arc<Token>) {
    let authority = authority();
    let issued = authority.issue(&id("a")).unwrap();
    let [ca, cert] = pems(&authority, &issued);
    let token = token(&issued, SignatureScheme::EcdsaP256Sha256, then);
    let identity = Identity::from_signing_key(&ca, &cert, Arc::clone(&token) as _).unwrap();
    (authority, identity, token)
}

#[test]
fn a_node_whose_device_signs_is_believed_as_any_other() {
    let (authority, identity, token) = held(Then::Signs);
    assert_eq!((identity.node_id(), identity.cluster_name()), (Some(id("a")), "edge"));
    identity.check_usable(Policy::default(), clock::wall_now()).unwrap();
    let signer = Signer::new(&identity);
    let signature = signer.sign(b"I am here").unwrap();
    let here = trust(&authority.issue(&id("b")).unwrap());
    assert!(here.verify_claim(&id("a"), &signer.chain(), b"I am here", &signature));
    assert_eq!(token.asked.load(SeqCst), 2, "once at loading, once for the claim");
    let error = identity.write_to("/nonexistent").unwrap_err().to_string();
    assert!(error.contains("never leaves its device"), "{error}");
}

#[test]
fn a_device_with_another_key_or_scheme_is_refused_at_loading() {
    let authority = authority();
    let (mine, other) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("b")).unwrap());
    let [ca, cert] = pems(&authority, &mine);
    let load = |identity: &Identity, scheme| {
        let token = token(identity, scheme, Then::Signs);
        Identity::from_signing_key(&ca, &cert, token).unwrap_err().to_string()
    };
    let error = load(&other, SignatureScheme::EcdsaP256Sha256);
    assert!(error.contains("does not fit the certificate"), "{error}");
    let error = load(&mine, SignatureScheme::Ed25519);
    assert!(error.contains("does not fit the certificate"), "{error}");
}

#[test]
fn a_device_that_fails_or_panics_makes_no_signature_and_is_asked_again() {
    for (then, says) in [(Then::Fails, "the token was pulled out"), (Then::Panics, "it panicked")] {
        let (_, identity, token) = held(then);
        let signer = identity.signing().choose_scheme(&[rustls::SignatureScheme::ECDSA_NISTP256_SHA256]);
        let signer = signer.unwrap();
        for asked in [2, 3] {
            let error = signer.sign(b"m").unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert_eq!(token.asked.load(SeqCst), asked);
        }
        assert_eq!(Signer::new(&identity).sign(b"m"), None);
    }
}

#[test]
fn a_device_that_hangs_is_left_alone_and_holds_nobody_up_twice() {
    let (go, waits) = mpsc::channel();
    let (_, identity, token) = held(Then::Waits(Mutex::new(waits)));
    let signer = identity.signing().choose_scheme(&[rustls::SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap();
    let error = signer.sign(b"m").unwrap_err().to_string();
    assert!(error.contains("no answer within 500ms"), "{error}");
    for _ in 0..100 {
        let error = signer.sign(b"m").unwrap_err().to_string();
        assert!(error.contains("left alone"), "{error}");
    }
    assert_eq!(token.asked.load(SeqCst), 2);
    drop(go);
}
