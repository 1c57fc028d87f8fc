//! The bounds of what tables are given: shares, counts, keys, periods. Each refusal says what would be right.

use std::time::Duration;

use crate::{Error, wire::limits};

fn refused(what: &str, value: String, fault: &str) -> Error {
    Error::InvalidReport { what: what.into(), value, fault: fault.into() }
}

/// A share of something: over 0, at most 1.
pub(super) fn share(what: &str, share: f64) -> Result<(), Error> {
    if share > 0.0 && share <= 1.0 {
        return Ok(());
    }
    Err(refused(what, share.to_string(), "a share is over 0 and at most 1"))
}

/// A rate of errors: from 0 to 1. Not -0, which equals 0 but is another value on the wire and in a hash.
pub(super) fn rate(what: &str, rate: f64) -> Result<(), Error> {
    if (0.0..=1.0).contains(&rate) && rate.is_sign_positive() {
        return Ok(());
    }
    Err(refused(what, rate.to_string(), "a rate is from 0 to 1, without a sign"))
}

/// How many of something: one at least.
pub(super) fn count(what: &str, count: usize) -> Result<(), Error> {
    if count > 0 {
        return Ok(());
    }
    Err(refused(what, count.to_string(), "at least 1 is needed"))
}

/// The longest period: what lives longer need not end by itself.
const PERIOD_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);

/// A period that ends: over a millisecond, at most a year.
pub(super) fn period(what: &str, period: Duration) -> Result<(), Error> {
    if (Duration::from_millis(1)..=PERIOD_MAX).contains(&period) {
        return Ok(());
    }
    Err(refused(what, format!("{period:?}"), "a period has 1 ms to 366 days"))
}

/// A key of a record.
pub(super) fn key(key: &str) -> Result<(), Error> {
    key_within(key, limits::KEY_LEN_MAX)
}

/// A key that a table makes longer.
pub(super) fn key_within(key: &str, limit: usize) -> Result<(), Error> {
    if (1..=limit).contains(&key.len()) {
        return Ok(());
    }
    Err(Error::InvalidKey { size: key.len(), limit })
}

/// A text for people.
pub(super) fn text(what: &str, text: &str) -> Result<(), Error> {
    const TEXT_LEN_MAX: usize = 1_024;
    if text.len() <= TEXT_LEN_MAX {
        return Ok(());
    }
    Err(refused(what, format!("{} bytes", text.len()), "at most 1,024 bytes are shared; shorten it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        assert!(share("the share", 0.5).is_ok() && share("the share", 1.0).is_ok());
        for bad in [0.0, -1.0, 1.01, f64::NAN, f64::INFINITY] {
            let error = share("the share", bad).unwrap_err().to_string();
            assert!(error.contains("the share") && error.contains("at most 1"), "{error}");
            assert!(rate("the rate", bad).is_err() || bad == 0.0);
        }
        assert!(share("the share", -0.0).is_err() && rate("the rate", -0.0).is_err());
        assert!(rate("the rate", 0.0).is_ok() && rate("the rate", 1.0).is_ok());
        assert!(count("k", 0).is_err() && count("k", 1).is_ok());
        assert!(period("the period", Duration::ZERO).is_err() && period("it", Duration::MAX).is_err());
        assert!(key("").is_err() && key(&"k".repeat(513)).is_err() && key("k").is_ok());
        assert!(text("the reason", &"x".repeat(1_025)).is_err());
    }
}
