//! Lists: which revision a list shows, its pages, and the continue tokens between them.
//!
//! The newest state comes from the cache. An older one (an exact revision, or a later page of a list that has
//! meanwhile changed) is read from the store's history, as long as that is kept.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use windlass_machinery::status::{ApiError, Details};
use windlass_store::{RangeRequest, Revision, StoreError};

use super::{Cacher, Caches, Entry, Filter};
use crate::options::{ListOptions, ReadVersion, VersionMatch};
use crate::storage::store_error;

/// One page of a list.
pub struct Page {
    pub entries: Vec<Arc<Entry>>,
    pub revision: Revision,
    /// Where the next page starts.
    pub continue_token: Option<String>,
    /// How many objects follow; only known without selectors.
    pub remaining: Option<usize>,
}

/// Upstream's continue token: the revision of the first page and the last key shown, relative to the scope.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";
/// In a token: the list goes on with what there is, although it is not what there was at its beginning.
const ANY_REVISION: i64 = -1;

pub(super) fn encode_token(revision: Revision, last: &str) -> String {
    token(i64::try_from(revision.0).unwrap_or(i64::MAX), last)
}

fn token(rv: i64, last: &str) -> String {
    let token = Token {
        v: TOKEN_VERSION.to_owned(),
        rv,
        // The next key in byte order, as upstream writes it.
        start: format!("{last}\u{0}"),
    };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

/// The revision to read at, `None` for whichever is present, and the key after which to go on.
fn decode_token(text: &str) -> Result<(Option<Revision>, String), ApiError> {
    let bad = |why: &str| {
        let why = format!("invalid continue token: continue key is not valid: {why}");
        ApiError::bad_request(why)
    };
    let bytes = URL_SAFE_NO_PAD
        .decode(text.trim_end_matches('='))
        .map_err(|e| bad(&e.to_string()))?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
    if token.v != TOKEN_VERSION {
        return Err(bad(&format!(
            "server does not recognize this encoded version {:?}",
            token.v
        )));
    }
    let revision = match token.rv {
        ANY_REVISION => None,
        at => match u64::try_from(at).ok().filter(|rv| *rv > 0) {
            Some(rv) => Some(Revision(rv)),
            None => return Err(bad("incorrect encoded start resourceVersion")),
        },
    };
    let start = token.start.trim_end_matches('\u{0}').to_owned();
    if start.is_empty() || start.split('/').any(|part| part == "..") {
        return Err(bad("encoded start key is empty or leaves its scope"));
    }
    Ok((revision, start))
}

impl Caches {
    /// Lists `cacher`'s objects that `filter` selects.
    ///
    /// # Errors
    /// 400 for a broken token, 410 when the revision is not kept any more, 504 when it lies in the future; what a
    /// conversion says that the filter needs.
    pub async fn list(
        &self,
        cacher: &Cacher,
        filter: &Filter,
        options: &ListOptions,
    ) -> Result<Page, ApiError> {
        let Some(converted) = filter.converted() else {
            return self.indexed(cacher, filter, options).await;
        };
        let whole = ListOptions {
            limit: 0,
            ..options.clone()
        };
        let mut page = self.indexed(cacher, filter, &whole).await?;
        converted.retain(&mut page.entries)?;
        page.cut(options.limit, &cacher.scope(filter));
        Ok(page)
    }

    /// The list by what the entries' indices tell.
    async fn indexed(
        &self,
        cacher: &Cacher,
        filter: &Filter,
        options: &ListOptions,
    ) -> Result<Page, ApiError> {
        let scope = cacher.scope(filter);
        if let Some(token) = &options.continue_token {
            let (revision, start) = decode_token(token)?;
            let start = format!("{scope}{start}");
            let Some(revision) = revision else {
                self.wait_current().await?;
                return Ok(self.cached_page(cacher, filter, &scope, Some(&start), options.limit));
            };
            // Also where the cache could still tell: when a token ends is the history's to say.
            let kept = RangeRequest {
                prefix: &scope,
                start_after: Some(&start),
                limit: 1,
                at: Some(revision),
            };
            self.wait_for(revision).await?;
            if let Err(error) = self.store.range(kept).await {
                return Err(token_too_old(error, &scope, &start));
            }
            return self
                .page_at(
                    cacher,
                    filter,
                    &scope,
                    Some(&start),
                    options.limit,
                    revision,
                )
                .await;
        }
        match (options.version, options.version_match) {
            (ReadVersion::At(revision), matching)
                if matching == Some(VersionMatch::Exact)
                    // The legacy rule for a limit without a match.
                    || (matching.is_none() && options.limit > 0) =>
            {
                return self
                    .page_at(cacher, filter, &scope, None, options.limit, revision)
                    .await;
            }
            (ReadVersion::At(revision), _) => self.wait_for(revision).await?,
            (ReadVersion::Any, _) => {}
            (ReadVersion::Unset, _) => {
                self.wait_current().await?;
            }
        }
        Ok(self.cached_page(cacher, filter, &scope, None, options.limit))
    }

    /// A page of the cache's present content.
    fn cached_page(
        &self,
        cacher: &Cacher,
        filter: &Filter,
        scope: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Page {
        // Before the lock: events up to here are in, and more of this resource's own may be.
        let reached = self.revision();
        let state = cacher.state.read();
        let revision = reached.max(state.revision);
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut selected = state.scan(scope, start_after).filter(|e| filter.matches(e));
        let entries: Vec<_> = selected.by_ref().take(limit).cloned().collect();
        let rest = if entries.len() < limit {
            0
        } else if filter.selects() {
            usize::from(selected.next().is_some())
        } else {
            selected.count()
        };
        page(entries, revision, scope, rest, filter)
    }

    /// A page of the content as it was at `revision`.
    async fn page_at(
        &self,
        cacher: &Cacher,
        filter: &Filter,
        scope: &str,
        start_after: Option<&str>,
        limit: usize,
        revision: Revision,
    ) -> Result<Page, ApiError> {
        self.wait_for(revision).await?;
        if cacher.state.read().revision <= revision {
            // Nothing of this resource has changed since: the cache is what it was.
            let mut page = self.cached_page(cacher, filter, scope, start_after, limit);
            if page.revision == revision || cacher.state.read().revision <= revision {
                page.retell(revision, scope);
                return Ok(page);
            }
        }
        let wanted = if limit == 0 { usize::MAX } else { limit };
        let mut entries: Vec<Arc<Entry>> = Vec::new();
        let mut last: Option<Arc<str>> = start_after.map(Arc::from);
        let rest = loop {
            let request = RangeRequest {
                prefix: scope,
                start_after: last.as_deref(),
                limit: wanted.saturating_sub(entries.len()).clamp(1, 1_000),
                at: Some(revision),
            };
            let range = self.store.range(request).await.map_err(too_old)?;
            last = range.items.last().map(|kv| kv.key.clone());
            let read = range
                .items
                .into_iter()
                .map(|kv| Arc::new(Entry::new(&cacher.resource, kv)));
            entries.extend(read.filter(|entry| filter.matches(entry)));
            if range.remaining == 0 || entries.len() >= wanted {
                break range.remaining;
            }
        };
        let mut found = page(entries, revision, scope, rest, filter);
        // The rest begins behind what was read, which selectors may have passed over.
        if let (Some(_), Some(last)) = (&found.continue_token, &last) {
            found.continue_token = Some(encode_token(
                revision,
                last.strip_prefix(scope).unwrap_or(last),
            ));
        }
        Ok(found)
    }
}

impl Page {
    /// Leaves the first `limit` entries, with a token for the rest.
    fn cut(&mut self, limit: usize, scope: &str) {
        if limit == 0 || self.entries.len() <= limit {
            return;
        }
        self.entries.truncate(limit);
        let last = self.entries.last().map(|entry| {
            encode_token(
                self.revision,
                entry.key.strip_prefix(scope).unwrap_or(&entry.key),
            )
        });
        self.continue_token = last;
    }

    /// Shows the same entries as of another revision at which they were the same.
    fn retell(&mut self, revision: Revision, scope: &str) {
        self.revision = revision;
        if let (Some(token), Some(last)) = (&mut self.continue_token, self.entries.last()) {
            *token = encode_token(revision, last.key.strip_prefix(scope).unwrap_or(&last.key));
        }
    }
}

fn page(
    entries: Vec<Arc<Entry>>,
    revision: Revision,
    scope: &str,
    rest: usize,
    filter: &Filter,
) -> Page {
    let last = entries.last().filter(|_| rest > 0);
    let continue_token = last.map(|entry| {
        encode_token(
            revision,
            entry.key.strip_prefix(scope).unwrap_or(&entry.key),
        )
    });
    let remaining = (rest > 0 && !filter.selects()).then_some(rest);
    Page {
        entries,
        revision,
        continue_token,
        remaining,
    }
}

/// The 410 of a token, with one in it by which the list can go on inconsistently.
fn token_too_old(error: StoreError, scope: &str, start: &str) -> ApiError {
    if !matches!(error, StoreError::Compacted { .. }) {
        return store_error(error);
    }
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a \
         new list without the continue parameter, or use the continue token in this response to retrieve \
         the remainder of the results. Continuing with the provided token results in an inconsistent list \
         - objects that were created, modified, or deleted between the time the first chunk was returned \
         and now may show up in the list.",
    );
    let last = start.strip_prefix(scope).unwrap_or(start);
    error.details = Some(Box::new(Details {
        continue_token: Some(token(ANY_REVISION, last)),
        ..Details::default()
    }));
    error
}

fn too_old(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted { .. } => {
            ApiError::expired("The resourceVersion for the provided list is too old.")
        }
        other => store_error(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_round_trip_and_broken_ones_are_400() {
        let token = encode_token(Revision(7), "default/web-0");
        let (revision, start) = decode_token(&token).unwrap();
        assert_eq!(
            (revision, start.as_str()),
            (Some(Revision(7)), "default/web-0")
        );
        for broken in [
            "",
            "!!!",
            "e30",
            &encode_token(Revision(0), "a"),
            &encode_token(Revision(1), "../x"),
        ] {
            assert_eq!(decode_token(broken).unwrap_err().code, 400, "{broken}");
        }
    }
}
