//! Tokens from a file (`--token-auth-file`): `token,user,uid,"group1,group2"` on each line.

use std::collections::HashMap;

use super::UserInfo;

#[derive(Debug, thiserror::Error)]
pub enum StaticTokensError {
    #[error("line {0}: a token, a user name and a uid are needed")]
    TooFew(usize),
    #[error("line {0}: the token is empty")]
    NoToken(usize),
    #[error("line {0}: a quote is not closed")]
    OpenQuote(usize),
}

/// The tokens and whom they stand for.
#[derive(Default)]
pub struct StaticTokens(HashMap<String, UserInfo>);

impl StaticTokens {
    /// # Errors
    /// For a line that is none.
    pub fn parse(text: &str) -> Result<Self, StaticTokensError> {
        let mut tokens = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let fields = fields(line).ok_or(StaticTokensError::OpenQuote(number))?;
            let [token, name, uid, rest @ ..] = fields.as_slice() else {
                return Err(StaticTokensError::TooFew(number));
            };
            if token.is_empty() {
                return Err(StaticTokensError::NoToken(number));
            }
            let groups = rest.first().map(String::as_str).unwrap_or_default();
            let groups = groups.split(',').map(str::trim).filter(|g| !g.is_empty());
            let user = UserInfo {
                name: name.clone(),
                uid: uid.clone(),
                groups: groups.map(str::to_owned).collect(),
                ..UserInfo::default()
            };
            tokens.insert(token.clone(), user);
        }
        Ok(Self(tokens))
    }

    pub(super) fn find(&self, token: &str) -> Option<UserInfo> {
        self.0.get(token).cloned()
    }
}

/// The fields of a line of comma-separated values; quotes may hold commas, a doubled quote is one.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.trim().chars().peekable();
    while let Some(c) = chars.next() {
        let last = fields.last_mut()?;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                last.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => last.push(c),
        }
    }
    (!quoted).then(|| fields.iter().map(|field| field.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_users_and_their_groups() {
        let tokens = StaticTokens::parse("t1,jane,1,\"a,b\"\n# nobody\n\nt2,joe,2\n").unwrap();
        assert_eq!(tokens.find("t1").unwrap().groups, ["a", "b"]);
        assert_eq!(tokens.find("t2").unwrap().name, "joe");
        assert!(tokens.find("t3").is_none());
        assert!(StaticTokens::parse("t1,jane").is_err());
        assert!(StaticTokens::parse("t1,jane,1,\"a").is_err());
    }
}
