//! The intruders: one with a certificate of another authority, one whose certificate names another node. Both
//! stay outside, and the cluster does not mind.

use std::collections::BTreeMap;

use crate::{
    Fault,
    certificates::{Certificates, seeds},
    fleet::Mark,
    node::WEIGHTS,
    notes::{Note, now, span},
    report::Check,
    story::{SOON, Story, is_member},
};

const STRANGER: &str = "mallory";
const IMPOSTOR: &str = "guest";

impl Story {
    pub(crate) async fn trials(&mut self, certificates: &Certificates) -> Result<(), Fault> {
        self.report.act("Two intruders");
        let before = self.refusals().await;
        self.stranger(certificates, &before).await?;
        self.impostor(certificates).await?;
        self.whole().await;
        Ok(())
    }

    /// Dials a member with a certificate that no member's authority has issued.
    async fn stranger(
        &mut self,
        certificates: &Certificates,
        before: &BTreeMap<String, u64>,
    ) -> Result<(), Fault> {
        let config = certificates.make_stranger(STRANGER)?;
        let (member, port) = self.nodes[0].clone();
        let mark = self.fleet.journal.mark();
        self.fleet.start(STRANGER, &config)?;
        let started = |note: &Note| matches!(note, Note::Started { .. }).then_some(());
        self.fleet.until(SOON, |journal| journal.first(mark, STRANGER, started)).await;
        let began = now();
        self.fleet.command(STRANGER, &format!("join 127.0.0.1:{port}")).await;
        let joined = self.fleet.until(SOON * 2, |journal| {
            journal.first(mark, STRANGER, |note| match note {
                Note::Joined { answered } => Some(*answered),
                _ => None,
            })
        });
        let joined = joined.await;
        let refused = self.new_refusals(before).await;
        let by_member = self.log(mark, &member);
        let measured = joined.map(|(at, _)| span(began, at)).unwrap_or_default();
        let seen =
            joined.is_some_and(|(_, answered)| answered == 0) && !refused.is_empty() && by_member.is_some();
        let text = format!("{STRANGER}, certified by another authority, dials {member} and is refused");
        self.report.check(Check::Stranger, seen, &text, &measured);
        self.report.quote(STRANGER, &self.log(mark, STRANGER).unwrap_or_else(|| "said nothing".into()));
        self.report.quote(&member, &by_member.unwrap_or_else(|| "said nothing".into()));
        let counts: Vec<_> = refused.iter().map(|(cause, count)| format!("{cause} × {count}")).collect();
        if !counts.is_empty() {
            self.report
                .quote("counters", &format!("connections refused by the members: {}", counts.join(", ")));
        }
        self.fleet.kill(STRANGER)?;
        self.fleet.ended(STRANGER, SOON).await;
        Ok(())
    }

    /// Takes a member's name with a certificate that names somebody else.
    async fn impostor(&mut self, certificates: &Certificates) -> Result<(), Fault> {
        let member = self.nodes[0].0.clone();
        let config = certificates.make_impostor(IMPOSTOR, &member, &seeds(&self.nodes))?;
        let mark = self.fleet.journal.mark();
        let began = self.fleet.start(IMPOSTOR, &config)?;
        let failed = self.fleet.until(SOON, |journal| {
            journal.first(mark, IMPOSTOR, |note| match note {
                Note::Failed { error } => Some(error.clone()),
                _ => None,
            })
        });
        let failed = failed.await;
        let well = self.fleet.ended(IMPOSTOR, SOON).await;
        let seen = !well && failed.as_ref().is_some_and(|(_, error)| error.contains("certificate names"));
        let measured = failed.as_ref().map(|(at, _)| span(began, *at)).unwrap_or_default();
        let text = format!("{IMPOSTOR} calls itself {member}; its own library refuses to start");
        self.report.check(Check::Impostor, seen, &text, &measured);
        if let Some((_, error)) = failed {
            self.report.quote(IMPOSTOR, &error);
        }
        Ok(())
    }

    /// Nobody died of it, nobody came in, and news still spreads.
    async fn whole(&mut self) {
        self.report.act("The cluster afterwards");
        let everyone = self.alive.clone();
        let agreed = self.fleet.until(SOON, |journal| journal.agreed(&everyone)).await;
        let origin = self.nodes[0].0.clone();
        let spread = self.broadcast(&origin, &format!("{WEIGHTS} pool-a 100"), &everyone).await;
        let equal = self.equal_records().await;
        let victim = &self.nodes[self.nodes.len() - 1].0;
        let is_death = |note: &Note| matches!(note, Note::Member { kind, .. } if kind == "node-dead");
        let journal = &self.fleet.journal;
        let falsely = journal.since(self.back).any(|entry| is_death(&entry.note))
            || journal
                .all()
                .any(|entry| is_death(&entry.note) && !is_member(&entry.note, "node-dead", victim));
        let inside = self.fleet.journal.all().any(|entry| match &entry.note {
            Note::Member { about, alive, .. } => {
                let outside = |name: &str| name == STRANGER || name == IMPOSTOR;
                entry.node != STRANGER && (outside(about) || alive.iter().any(|name| outside(name)))
            }
            _ => false,
        });
        let measured = spread.as_ref().map(|(took, _)| span(0, *took)).unwrap_or_default();
        let wrong: Vec<_> = [
            (agreed.is_none(), "the members do not agree on who is alive"),
            (spread.is_none(), "a broadcast does not reach all"),
            (equal.is_none(), "the members hold different records"),
            (falsely, "a live node was reported dead"),
            (inside, "an intruder was a member"),
        ]
        .into_iter()
        .filter_map(|(wrong, words)| wrong.then_some(words))
        .collect();
        let text = format!("all {} agree, no intruder came in, and news still spreads", everyone.len());
        self.report.check(Check::Whole, wrong.is_empty(), &text, &measured);
        for words in wrong {
            self.report.quote("why", words);
        }
    }

    /// What a node logged of a refusal since the mark.
    fn log(&self, mark: Mark, node: &str) -> Option<String> {
        let found = self.fleet.journal.first(mark, node, |note| match note {
            Note::Log { text } if text.contains("refused") => Some(text.clone()),
            _ => None,
        });
        found.map(|(_, text)| text)
    }

    /// How many connections the members have refused, by cause.
    async fn refusals(&mut self) -> BTreeMap<String, u64> {
        let (mark, everyone) = (self.fleet.journal.mark(), self.alive.clone());
        for name in &everyone {
            self.fleet.command(name, "refused").await;
        }
        let counted = |note: &Note| matches!(note, Note::Counted { .. });
        self.fleet.until(SOON, |journal| journal.everywhere(mark, &everyone, counted)).await;
        let mut sum = BTreeMap::new();
        for entry in self.fleet.journal.since(mark) {
            if let Note::Counted { refused } = &entry.note {
                for (cause, count) in refused {
                    *sum.entry(cause.clone()).or_default() += count;
                }
            }
        }
        sum
    }

    /// Those that came since `before`. Waits for the first: the stranger may hear of it before it is counted.
    async fn new_refusals(&mut self, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        for _ in 0..20 {
            let mut refused = self.refusals().await;
            for (cause, count) in &mut refused {
                *count -= before.get(cause).copied().unwrap_or(0).min(*count);
            }
            refused.retain(|_, count| *count > 0);
            if !refused.is_empty() {
                return refused;
            }
            tokio::time::sleep(SOON / 20).await;
        }
        BTreeMap::new()
    }
}
