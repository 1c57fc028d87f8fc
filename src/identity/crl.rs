//! Revocation lists: whose they are, and which of two is the newer. What they revoke, webpki finds.

use std::{hash::Hasher as _, time::SystemTime};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use siphasher::sip::SipHasher13;
use webpki::{BorrowedCertRevocationList, OwnedCertRevocationList};

use super::{
    file::fault,
    trust::provider,
    x509::{self, Facts, ListFacts},
};
use crate::Error;

type List = CertificateRevocationListDer<'static>;

/// `held` and `added`, one list a signer: the newest.
pub(super) fn merge(
    held: &[List],
    added: Vec<List>,
    signers: &[&CertificateDer<'static>],
    what: &str,
) -> Result<Vec<List>, Error> {
    let signers: Vec<Facts> = signers.iter().filter_map(|signer| x509::facts(signer).ok()).collect();
    let mut kept: Vec<Kept> = Vec::new();
    for list in held {
        kept.extend(Kept::new(list.clone(), &signers, what));
    }
    let before = kept.len();
    let mut fresh: Vec<Kept> = Vec::new();
    for list in added {
        let list = Kept::new(list, &signers, what)?;
        match fresh.iter_mut().find(|other| other.signer == list.signer) {
            Some(other) if other.facts.age < list.facts.age => *other = list,
            Some(_) => {}
            None => fresh.push(list),
        }
    }
    for list in fresh {
        match kept[..before].iter().position(|other| other.signer == list.signer) {
            Some(at) if kept[at].facts.age > list.facts.age => {
                return Err(older(what, &list.facts, &kept[at].facts));
            }
            Some(at) => kept[at] = list,
            None => kept.push(list),
        }
    }
    Ok(kept.into_iter().map(|list| list.der).collect())
}

/// Refuses `new` if it has an older list than `current`, of the same signer.
pub(super) fn refuse_older(new: &[List], current: &[List]) -> Result<(), Error> {
    for new in new.iter().filter_map(|list| x509::list_facts(list).ok()) {
        for current in current.iter().filter_map(|list| x509::list_facts(list).ok()) {
            if new.issuer == current.issuer && new.age < current.age {
                return Err(older("revocation list", &new, &current));
            }
        }
    }
    Ok(())
}

fn older(what: &str, new: &ListFacts, held: &ListFacts) -> Error {
    let text = format!("its number {} is older than {}, which is in force", new.number(), held.number());
    fault(what, text, "fetch the authority's newest list; the newer one stays in force")
}

/// Which of `signers` made the list, by name and by signature.
pub(super) fn signer_of(list: &ListFacts, signers: &[Facts]) -> Option<usize> {
    signers.iter().position(|signer| {
        signer.subject == list.issuer
            && provider().signature_verification_algorithms.all.iter().any(|algorithm| {
                algorithm.verify_signature(&signer.key, &list.signed, &list.signature).is_ok()
            })
    })
}

/// A number for an authority, by name and key, that all nodes come to.
pub(super) fn issuer_id(signer: &Facts) -> u64 {
    // Only trusted authorities have one here, so nobody gains by two that are the same.
    let mut hasher = SipHasher13::new();
    hasher.write(&signer.subject);
    hasher.write(&(signer.subject.len() as u64).to_be_bytes());
    hasher.write(&signer.key);
    hasher.finish()
}

/// A list in force, as people and peers are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListInForce {
    pub(crate) issuer: u64,
    /// Its age as bytes, the newer of two the greater.
    pub(crate) age: Vec<u8>,
    pub(crate) der: Vec<u8>,
    /// As people write it.
    pub(crate) number: String,
    pub(crate) entries: usize,
    pub(crate) next_update: Option<SystemTime>,
}

impl ListInForce {
    /// `None` if none of `signers` made it.
    pub(super) fn of(der: &List, signers: &[Facts]) -> Option<Self> {
        let facts = x509::list_facts(der).ok()?;
        let issuer = issuer_id(&signers[signer_of(&facts, signers)?]);
        Some(Self {
            issuer,
            age: age_in_bytes(&facts),
            der: der.to_vec(),
            number: facts.number(),
            entries: facts.revoked.len(),
            next_update: facts.next_update,
        })
    }
}

/// Ordered as `ListFacts::age` is.
pub(super) fn age_in_bytes(facts: &ListFacts) -> Vec<u8> {
    let (len, number, time) = &facts.age;
    let len = u16::try_from(*len).unwrap_or(u16::MAX).to_be_bytes();
    // With the sign bit turned over, times before 1970 come first.
    let time = (time.cast_unsigned() ^ 1 << 63).to_be_bytes();
    [&len[..], number, &time[..]].concat()
}

/// A list as webpki wants it.
pub(super) fn parsed(list: &CertificateRevocationListDer<'_>) -> Result<OwnedCertRevocationList, String> {
    BorrowedCertRevocationList::from_der(list)
        .and_then(|list| list.to_owned())
        .map_err(|error| format!("it cannot be used ({error})"))
}

/// A list whose signer is known.
struct Kept {
    der: List,
    facts: ListFacts,
    signer: usize,
}

impl Kept {
    fn new(der: List, signers: &[Facts], what: &str) -> Result<Self, Error> {
        let refuse = |text| fault(what, text, "fetch the authority's list anew");
        parsed(&der).map_err(refuse)?;
        let facts = x509::list_facts(&der).map_err(refuse)?;
        let signer = signer_of(&facts, signers).ok_or_else(|| {
            let text = "none of the identity's certificate authorities signed it";
            fault(what, text, "name the list of an authority in the CA file, or add its signer to that file")
        })?;
        Ok(Self { der, facts, signer })
    }
}
