//! Many nodes at once, a bounded number at a time.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Runs `work` on each of `items`, at most `parallel` at a time, and returns what came of each in their order. `done` is told of each as it ends.
///
/// # Panics
/// When `work` does.
pub fn each<I: Sync, T: Send>(
    items: &[I],
    parallel: usize,
    work: impl Fn(&I) -> T + Sync,
    done: impl Fn(&I, &T) + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::with_capacity(items.len()));
    thread::scope(|scope| {
        for _ in 0..parallel.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return };
                    let result = work(item);
                    done(item, &result);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_the_bound_holds() {
        let items: Vec<usize> = (0..100).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |item: &usize| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            item * 2
        };
        let told = AtomicUsize::new(0);
        let results = each(&items, 7, work, |_, _| {
            told.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(results, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        assert!(most.into_inner() <= 7);
        assert_eq!(told.into_inner(), 100);
        assert!(each(&[] as &[usize], 0, |item| *item, |_, _| ()).is_empty());
    }
}
