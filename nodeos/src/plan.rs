//! What to do so that the slivers there are become the slivers that are wanted. Pure.

use std::collections::BTreeMap;

use orrery_protocol::{Digest, Rspec, SliceName, SliverSpec, WantedState};

/// A sliver that exists on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// Whose it is.
    pub slice: SliceName,
    /// What its root started from.
    pub image: Digest,
    /// The limits it has.
    pub rspec: Rspec,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Remove the sliver and its data.
    Destroy(SliceName),
    /// Give an existing sliver other limits.
    Update(SliverSpec),
    /// Make a new sliver.
    Create(SliverSpec),
}

impl Action {
    /// Whose sliver it is about.
    pub fn slice(&self) -> &SliceName {
        match self {
            Self::Destroy(slice) => slice,
            Self::Update(spec) | Self::Create(spec) => &spec.slice,
        }
    }
}

/// The steps from `existing` to `wanted`, in an order that frees what is no longer wanted first.
///
/// A sliver whose wanted image is another than the one it started from stays as it is: its changes have no meaning on top of
/// another image, and discarding them is its owner's decision, made by deleting it. Limits that cannot be enforced
/// are not acted upon, neither for a new sliver nor for an existing one.
pub fn plan(wanted: &WantedState, existing: &[Existing]) -> Vec<Action> {
    let wanted: BTreeMap<&SliceName, &SliverSpec> = wanted.slivers.iter().map(|spec| (&spec.slice, spec)).collect();
    let mut destroy = Vec::new();
    let mut update = Vec::new();
    let mut create = wanted.clone();
    for sliver in existing {
        create.remove(&sliver.slice);
        match wanted.get(&sliver.slice) {
            None => destroy.push(Action::Destroy(sliver.slice.clone())),
            Some(spec) if spec.rspec != sliver.rspec && spec.rspec.check().is_ok() => {
                update.push(Action::Update((*spec).clone()));
            }
            Some(_) => (),
        }
    }
    let create = create.into_values().filter(|spec| spec.rspec.check().is_ok()).cloned().map(Action::Create);
    destroy.into_iter().chain(update).chain(create).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::slice::from_ref;

    use orrery_protocol::{ArtifactRef, ImageRef};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn spec(name: &str, image: u8, cpu_share: u32) -> SliverSpec {
        SliverSpec {
            slice: format!("demo/{name}").parse().unwrap(),
            keys: Vec::new(),
            image: ImageRef {
                name: "debian".to_owned(),
                content: ArtifactRef { sha256: Digest([image; 32]), size: 1 },
            },
            rspec: Rspec { cpu_share, ..Rspec::default() },
        }
    }

    pub(crate) fn existing(spec: &SliverSpec) -> Existing {
        Existing { slice: spec.slice.clone(), image: spec.image.content.sha256, rspec: spec.rspec }
    }

    fn check(wanted: &[SliverSpec], have: &[SliverSpec], expect: &[&str]) {
        let have: Vec<_> = have.iter().map(existing).collect();
        let actions = plan(&WantedState { slivers: wanted.to_vec(), reboot: None }, &have);
        let words: Vec<_> = actions
            .iter()
            .map(|action| match action {
                Action::Destroy(slice) => format!("destroy {}", slice.name()),
                Action::Update(spec) => format!("update {} {}", spec.slice.name(), spec.rspec.cpu_share),
                Action::Create(spec) => format!("create {}", spec.slice.name()),
            })
            .collect();
        assert_eq!(words, expect);
    }

    #[test]
    fn plans() {
        let (a, b) = (spec("a", 1, 100), spec("b", 1, 100));
        check(&[], &[], &[]);
        check(from_ref(&a), &[], &["create a"]);
        check(from_ref(&a), from_ref(&a), &[]);
        check(&[], from_ref(&a), &["destroy a"]);
        check(&[b.clone(), spec("c", 1, 7)], &[a.clone(), spec("c", 1, 8)], &["destroy a", "update c 7", "create b"]);
        // Another image does not cost a sliver its data.
        check(&[spec("a", 2, 100)], from_ref(&a), &[]);
        // Limits that cannot be.
        check(&[spec("a", 1, 0), spec("b", 1, 0)], &[a], &[]);
        // Named twice: the last one counts.
        check(&[b.clone(), spec("b", 1, 5)], &[b], &["update b 5"]);
    }

    fn any_specs() -> impl Strategy<Value = Vec<SliverSpec>> {
        prop::collection::btree_map("[a-f]", (0..3_u8, 1..4_u32), 0..6)
            .prop_map(|specs| specs.into_iter().map(|(name, (image, share))| spec(&name, image, share)).collect())
    }

    proptest! {
        #[test]
        fn a_plan_carried_out_leaves_nothing_to_do(wanted in any_specs(), have in any_specs()) {
            let wanted = WantedState { slivers: wanted, reboot: None };
            let mut have: BTreeMap<_, _> = have.iter().map(existing).map(|e| (e.slice.clone(), e)).collect();
            let kept: Vec<_> = have.values().cloned().collect();
            for action in plan(&wanted, &have.values().cloned().collect::<Vec<_>>()) {
                match action {
                    Action::Destroy(slice) => {
                        prop_assert!(wanted.slivers.iter().all(|s| s.slice != slice), "destroys a wanted sliver");
                        prop_assert!(have.remove(&slice).is_some());
                    }
                    Action::Update(spec) => have.get_mut(&spec.slice).unwrap().rspec = spec.rspec,
                    Action::Create(spec) => prop_assert!(have.insert(spec.slice.clone(), existing(&spec)).is_none()),
                }
            }
            prop_assert_eq!(have.len(), wanted.slivers.len());
            for spec in &wanted.slivers {
                prop_assert_eq!(have[&spec.slice].rspec, spec.rspec);
            }
            for before in kept.iter().filter(|e| have.contains_key(&e.slice)) {
                prop_assert_eq!(have[&before.slice].image, before.image);
            }
            prop_assert!(plan(&wanted, &have.into_values().collect::<Vec<_>>()).is_empty());
        }
    }
}
