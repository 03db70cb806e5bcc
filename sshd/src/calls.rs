//! Calls that may block: few at a time for each account, so that no account has all the threads there are.

use std::{io, sync::Arc};

use tokio::{sync::Semaphore, task::spawn_blocking};

/// The calls of one account. Others wait their turn.
#[derive(Clone)]
pub(crate) struct Calls(Arc<Semaphore>);

impl Calls {
    /// Of which `most` run at a time.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Those that take turns in this semaphore, too.
    pub(crate) fn sharing(turns: Arc<Semaphore>) -> Self {
        Self(turns)
    }

    /// The semaphore they take turns in. It is there as long as any of them runs, whoever waits for it or not.
    pub(crate) fn turns(&self) -> &Arc<Semaphore> {
        &self.0
    }

    /// Runs `call` on a thread where it may block, in its turn.
    ///
    /// # Errors
    /// The call's.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = self.0.clone().acquire_owned().await.map_err(io::Error::other)?;
        let called = spawn_blocking(move || {
            // Until it really ends: whoever waits may give it up earlier.
            let _turn = turn;
            call()
        });
        called.await.unwrap_or_else(|e| Err(io::Error::other(e)))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_call_that_was_given_up_has_its_turn_until_it_ends() {
        let calls = Calls::new(1);
        let (end, word) = mpsc::channel::<()>();
        let blocked = calls.run(move || word.recv().map_err(io::Error::other));
        assert!(timeout(Duration::from_millis(10), blocked).await.is_err());
        let other = calls.run(|| Ok(()));
        assert!(timeout(Duration::from_millis(10), other).await.is_err(), "out of turn");
        end.send(()).unwrap();
        calls.run(|| Ok(())).await.unwrap();
    }
}
