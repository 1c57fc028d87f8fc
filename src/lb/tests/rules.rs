//! The rules of the tables, one by one.

pub(super) fn order(target: &str, number: usize) -> String {
    crate::lb::drain::key_of(target, &crate::lb::drain::name_of((number as u64, 0)))
}
