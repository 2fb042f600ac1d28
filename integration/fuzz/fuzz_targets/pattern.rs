//! Any bytes as a pattern of a restore and the paths that it is held against: it fits what a plain table of
//! all possibilities says, also on the way there, and a path that is meant as it is fits itself alone.
//!
//! The time that one match takes is bounded by libFuzzer's own limit: among the seeds are patterns for which a
//! walk that tries everything would need years.

#![no_main]

use holdfast_restore::{
    join_path, names,
    pattern::{Pattern, Reached, is_pattern},
    shown,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A zero byte can be in no path.
    let mut paths = bytes.split(|byte| *byte == 0);
    let pattern = paths.next().unwrap_or_default();
    for path in paths.take(4) {
        compare(pattern, path);
        compare(&escaped(path), path);
        literal(path);
    }
    literal(pattern);
    path(pattern);
});

/// What was reached after each name, beginning before the first.
fn walked(pattern: &Pattern, names: &[Vec<u8>]) -> Vec<Reached> {
    let mut reached = vec![pattern.start()];
    for name in names {
        let next = pattern.next(&reached[reached.len() - 1], name);
        reached.push(next);
    }
    reached
}

/// The pattern and the path beside the table.
fn compare(pattern: &[u8], path: &[u8]) {
    let (steps, names) = (steps(pattern), names(path));
    let expected = table(&steps, &names);
    let reached = walked(&Pattern::new(pattern), &names);
    assert_eq!(reached.len(), expected.len());
    for (depth, (reached, (fits, alive))) in reached.iter().zip(expected).enumerate() {
        let met = (reached.is_match(), reached.is_alive());
        assert_eq!(met, (fits, alive), "{:?}", names.get(..depth));
    }
}

/// A path that is meant as it is: fits itself, neither what is above nor what is below nor what is beside it.
fn literal(path: &[u8]) {
    let below = names(path);
    let pattern = Pattern::new(&escaped(path));
    let mut reached = walked(&pattern, &below);
    let end = reached.pop().expect("the beginning");
    assert!(end.is_match() && !end.is_alive());
    assert!(reached.iter().all(|above| !above.is_match() && above.is_alive()));
    assert!(!pattern.next(&end, b"x").is_match());
    if let (Some(above), Some(last)) = (reached.last(), below.last()) {
        for other in [&[&last[..], b"x"].concat(), &last[1..]] {
            assert!(!pattern.next(above, other).is_match());
        }
    }
    assert_eq!(is_pattern(path), escaped(path) != path);
}

/// Names and paths are each other's inverse, and what is shown can do no harm to a terminal.
fn path(path: &[u8]) {
    let parts = names(path);
    let joined = parts
        .iter()
        .fold(b"/".to_vec(), |path, name| join_path(&path, name));
    assert_eq!(names(&joined), parts);
    assert!(joined.len() <= path.len() + 1);
    let shown = shown(path);
    assert!(!shown.contains(char::is_control));
    assert_eq!(holdfast_restore::shown(shown.as_bytes()), shown);
}

/// The path with a backslash before whatever else would be a wildcard.
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.len());
    for byte in path {
        if matches!(byte, b'*' | b'?' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

/// A part of a name's pattern.
enum Token<'p> {
    Any,
    One,
    This(&'p [u8]),
}

/// A part of a path's pattern.
enum Step<'p> {
    AnyDepth,
    Name(Vec<Token<'p>>),
}

fn steps(pattern: &[u8]) -> Vec<Step<'_>> {
    pattern
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
        .map(|name| match name {
            b"**" => Step::AnyDepth,
            _ => Step::Name(tokens(name)),
        })
        .collect()
}

fn tokens(name: &[u8]) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut characters = characters(name).into_iter().peekable();
    while let Some(character) = characters.next() {
        tokens.push(match character {
            b"*" => Token::Any,
            b"?" => Token::One,
            b"\\" => Token::This(characters.next().unwrap_or(character)),
            _ => Token::This(character),
        });
    }
    tokens
}

/// Characters; of what is no UTF-8, bytes.
fn characters(text: &[u8]) -> Vec<&[u8]> {
    let mut ends = Vec::new();
    for chunk in text.utf8_chunks() {
        ends.extend(chunk.valid().chars().map(char::len_utf8));
        ends.extend(chunk.invalid().iter().map(|_| 1));
    }
    let mut rest = text;
    ends.into_iter()
        .map(|len| {
            let (character, behind) = rest.split_at(len);
            rest = behind;
            character
        })
        .collect()
}

/// For each number of names: whether all steps fit so many, and whether more names may fit.
fn table(steps: &[Step<'_>], names: &[Vec<u8>]) -> Vec<(bool, bool)> {
    let names: Vec<_> = names.iter().map(|name| characters(name)).collect();
    // By the number of names: whether the steps so far fit them.
    let mut fit = vec![false; names.len() + 1];
    fit[0] = true;
    let mut alive = vec![false; names.len() + 1];
    for (at, step) in steps.iter().enumerate() {
        let is_last = at + 1 == steps.len();
        let before = fit;
        fit = vec![false; names.len() + 1];
        for n in 0..=names.len() {
            alive[n] |= before[n];
            fit[n] = match step {
                // What is below a directory, but not the directory.
                Step::AnyDepth if is_last => before[..n].contains(&true),
                Step::AnyDepth => before[..=n].contains(&true),
                Step::Name(tokens) => n > 0 && before[n - 1] && name_fits(tokens, &names[n - 1]),
            };
            if matches!(step, Step::AnyDepth) {
                alive[n] |= fit[n];
            }
        }
    }
    fit.into_iter().zip(alive).collect()
}

fn name_fits(tokens: &[Token<'_>], name: &[&[u8]]) -> bool {
    // By the number of characters: whether the tokens so far fit them.
    let mut fit = vec![false; name.len() + 1];
    fit[0] = true;
    for token in tokens {
        let before = fit;
        fit = vec![false; name.len() + 1];
        let mut any = false;
        for n in 0..=name.len() {
            any |= before[n];
            let stepped = n > 0 && before[n - 1];
            fit[n] = match token {
                Token::Any => any,
                Token::One => stepped,
                Token::This(character) => stepped && name[n - 1] == *character,
            };
        }
    }
    fit[name.len()]
}
