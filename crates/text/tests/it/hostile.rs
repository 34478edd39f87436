//! Rows T1 to T5 and J1 to J8 of the catalogue of bad inputs: hostile vocabularies, texts and
//! templates. (T6 and T7 are in `chat.rs`, T8 in `streaming.rs`.)
//!
//! Each row runs in a child process with an address space limit, so that "does not abort, does not
//! overflow, does not eat memory" is observed and not hoped for.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use moeba_text::{ChatTemplate, LoadError, RenderError, RenderInput, Specials, Tokenizer, message};
use serde_json::{Value, json};

use crate::chat::byte_tokenizer;
use crate::fixtures::{sentence_piece, smollm2, tekken_json};

/// Names the row a child process must run.
const ROW: &str = "MOEBA_TEST_ROW";
/// Address space of a child in KiB: far below what the attacks ask for.
const ADDRESS_SPACE_KIB: u32 = 768 << 10;
/// Wall time for one row; tests run on busy machines and without optimisation.
const PATIENCE: Duration = Duration::from_mins(5);

/// Every row by name.
const ROWS: &[(&str, fn())] = &[
    ("t1_merges", t1_merges),
    ("t2_ids", t2_ids),
    ("t3_patterns", t3_patterns),
    ("t4_long_words", t4_long_words),
    ("t5_steps", t5_steps),
    ("j1_loops", j1_loops),
    ("j2_repeats", j2_repeats),
    ("j3_doubling", j3_doubling),
    ("j4_nesting", j4_nesting),
    ("j5_recursion", j5_recursion),
    ("j6_reach", j6_reach),
    ("j7_many_turns", j7_many_turns),
    ("j8_errors", j8_errors),
];

#[test]
fn child() {
    let Ok(name) = std::env::var(ROW) else { return };
    let (_, row) = ROWS.iter().find(|(row, _)| *row == name).unwrap();
    row();
}

fn spawn(name: &str) {
    let exe = std::env::current_exe().unwrap();
    let script = format!("ulimit -v {ADDRESS_SPACE_KIB}; exec \"$0\" --exact hostile::child");
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .arg(exe)
        .env(ROW, name)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{name}: {status}");
            return;
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{name}: still running after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

macro_rules! rows {
    ($($test:ident = $row:ident),* $(,)?) => {
        $(#[test] fn $test() { spawn(stringify!($row)); })*
    };
}

rows! {
    hostile_merges_are_refused = t1_merges,
    hostile_ids_are_refused = t2_ids,
    hostile_patterns_are_refused_or_run_out_of_steps = t3_patterns,
    long_words_take_linear_time = t4_long_words,
    hostile_pipeline_steps_are_refused = t5_steps,
    endless_loops_run_out_of_fuel = j1_loops,
    repetition_is_bounded = j2_repeats,
    doubling_is_bounded = j3_doubling,
    deep_nesting_is_refused = j4_nesting,
    recursion_is_refused = j5_recursion,
    nothing_outside_is_reachable = j6_reach,
    many_turns_render_quickly = j7_many_turns,
    template_errors_are_told = j8_errors,
}

/// A small, valid tokenizer.json to break.
fn valid_json() -> Value {
    json!({
        "added_tokens": [{"id": 4, "content": "<s>", "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "aba": 3},
            "merges": ["a b", "ab a"]},
    })
}

fn load(json: &Value) -> Result<Tokenizer, LoadError> {
    Tokenizer::from_tokenizer_json(json.to_string().as_bytes(), None)
}

/// Processor time this process has used. Rows run alone in their process, and busy machines make
/// wall time meaningless.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|f| f.parse().ok()).unwrap_or(0u64);
    // User and system time in hundredths of a second.
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

/// Processor time since `start`.
fn since(start: Duration) -> Duration {
    cpu_time().saturating_sub(start)
}

/// Loads `valid_json` with one value replaced and expects a refusal that mentions `hint`.
fn refused(pointer: &str, value: Value, hint: &str) {
    let mut json = valid_json();
    *json.pointer_mut(pointer).unwrap() = value;
    let start = cpu_time();
    let error = load(&json).expect_err(pointer).to_string();
    assert!(error.contains(hint), "{pointer}: `{error}` does not mention `{hint}`");
    assert!(error.len() < 600, "{error}");
    assert!(since(start) < Duration::from_secs(10), "{pointer}: {:?}", since(start));
}

fn t1_merges() {
    assert_eq!(load(&valid_json()).unwrap().encode("abaab", Specials::Plain).unwrap(), [3, 2]);
    refused("/model/merges", json!(["a b", "ab c"]), "merges[1]");
    refused("/model/merges", json!(["aba ab"]), "`abaab` is missing");
    refused("/model/merges", json!(["a "]), "two parts");
    refused("/model/merges", json!([" a"]), "two parts");
    refused("/model/merges", json!(["ab"]), "two parts");
    refused("/model/merges", json!([["a", ""]]), "two parts");
    refused("/model/merges", json!(["a b a"]), "two parts");
    refused("/model/merges", json!([1]), "cannot be read");
    let many = format!("[{}\"a b\"]", "\"a b\",".repeat(4 << 20));
    let source = valid_json().to_string().replace("[\"a b\",\"ab a\"]", &many);
    let error = Tokenizer::from_tokenizer_json(source.as_bytes(), None).unwrap_err();
    assert!(error.to_string().contains("at most 4194304"), "{error}");
    let mut vocabulary = smollm2();
    vocabulary.merges.push("Ġthe ĠqqqqX".into());
    let error = Tokenizer::from_gguf(&vocabulary.gguf("gpt2", Some("smollm"))).unwrap_err();
    assert!(error.to_string().contains("tokenizer.ggml.merges[48900]"), "{error}");
    // A merge that would make a control token is left out, so text cannot become one.
    let mut vocabulary = smollm2();
    vocabulary.tokens.push("<|im_end".into());
    vocabulary.types.push(1);
    vocabulary.merges.push("< |".into());
    let vocabulary_size = vocabulary.tokens.len();
    assert!(vocabulary_size > 49152);
}

fn t2_ids() {
    refused(
        "/model/vocab",
        json!({"a": 0, "b": 1, "ab": 2, "aba": 2_147_483_648u32}),
        "large gaps",
    );
    refused("/model/vocab", json!({"a": 0, "b": 1, "ab": 2, "aba": 9000}), "large gaps");
    refused("/model/vocab", json!({"a": 0, "b": 1, "ab": 2, "aba": 2}), "one token per id");
    refused("/model/vocab", json!({"a": -1}), "cannot be read");
    refused("/model/vocab", json!({"a": 1e10}), "cannot be read");
    refused("/model/vocab", json!({}), "at least one token");
    refused("/model/vocab", json!([["a", 0.5]]), "cannot be read");
    refused("/added_tokens", json!([{"id": 4, "content": ""}]), "an empty string");
    refused("/added_tokens", json!([{"id": 4, "content": "x".repeat(1 << 20)}]), "at most 8192");
    refused(
        "/added_tokens",
        json!([{"id": 4, "content": "x"}, {"id": 5, "content": "x"}]),
        "of its own",
    );
    refused(
        "/added_tokens",
        json!([{"id": 4, "content": "x"}, {"id": 4, "content": "y"}]),
        "one id twice",
    );
    refused("/added_tokens", json!([{"id": 0, "content": "x"}]), "one token per id");
    refused("/added_tokens", json!([{"id": 4_294_967_295u32, "content": "x"}]), "large gaps");
    let vocabulary = smollm2();
    let broken = |change: &dyn Fn(&mut moeba_text::GgufVocabulary<'_>), hint: &str| {
        let mut source = vocabulary.gguf("gpt2", Some("smollm"));
        change(&mut source);
        let error = Tokenizer::from_gguf(&source).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    };
    broken(&|s| s.bos = Some(49152), "bos_token_id");
    broken(&|s| s.eos = Some(u32::MAX), "eos_token_id");
    broken(&|s| s.token_types[5] = 7, "token_type[5]");
    broken(&|s| s.token_types.truncate(10), "one entry per token");
    broken(&|s| s.scores = vec![0.0; 3], "one entry per token");
    broken(&|s| s.tokens[70] = b"\xff\xfe", "UTF-8");
    broken(&|s| s.tokens.clear(), "at least one token");
    broken(&|s| s.pre = Some("gpt-5"), "known names are");
    broken(&|s| s.model = "bert", "known models are");
    let spm = sentence_piece();
    let broken = |change: &dyn Fn(&mut moeba_text::GgufVocabulary<'_>), hint: &str| {
        let mut source = spm.gguf("llama", None);
        change(&mut source);
        let error = Tokenizer::from_gguf(&source).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    };
    broken(&|s| s.tokens[3] = b"<0x-1>", "byte token");
    broken(&|s| s.tokens[3] = b"<0xGG>", "byte token");
    broken(&|s| s.tokens[3] = "<0x\u{e9}>".as_bytes(), "byte token");
    broken(&|s| s.scores[9] = f32::NAN, "NaN");
    broken(&|s| s.scores.clear(), "one score per token");
    let long: &str = "x".repeat(8192).leak();
    broken(&|s| (300..32000).for_each(|id| s.tokens[id] = long.as_bytes()), "bytes in all");
}

fn t3_patterns() {
    let with = |pattern: &str| {
        let mut json = valid_json();
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]});
        load(&json)
    };
    for pattern in
        [r"(a)\1", r"(?<=a)b", r"(?=a)b", r"a(?!b)", "(", "[", "((a{1000}){1000}){1000}", "\\"]
    {
        let start = cpu_time();
        let error = with(pattern).expect_err(pattern).to_string();
        assert!(error.contains("pre_tokenizer.pattern"), "{error}");
        assert!(since(start) < Duration::from_secs(2), "{pattern}: {:?}", since(start));
    }
    let hostile = "a".repeat(1 << 20) + "!";
    for pattern in ["(a+)+$", "(a|aa)+$", "a.*b|a", "(a*)*b|a", r"(\s|a|\S)*c|a", "(.*)(.*)(.*)x"] {
        let tokenizer = with(pattern).unwrap();
        let start = cpu_time();
        // Linear or out of steps: both are fine, quadratic is not.
        let result = tokenizer.encode(&hostile, Specials::Plain);
        assert!(since(start) < Duration::from_secs(10), "{pattern}: {:?}", since(start));
        if let Err(error) = result {
            assert!(error.to_string().contains("steps"), "{error}");
        }
    }
    let mut json = valid_json();
    json["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "x"});
    assert_eq!(load(&json).unwrap().encode("aba", Specials::Plain).unwrap(), [3]);
    json["normalizer"] =
        json!({"type": "Replace", "pattern": {"String": "a"}, "content": "x".repeat(100_000)});
    assert!(load(&json).unwrap().encode(&"a".repeat(100_000), Specials::Plain).is_err());
}

/// The best of three runs.
/// Seconds of processor time.
fn time(tokenizer: &Tokenizer, text: &str) -> f64 {
    let start = cpu_time();
    tokenizer.encode(text, Specials::Parse).unwrap();
    since(start).as_secs_f64()
}

fn t4_long_words() {
    let smollm2 = smollm2();
    let tokenizers = [
        ("smollm", Tokenizer::from_gguf(&smollm2.gguf("gpt2", Some("smollm"))).unwrap()),
        ("llama-bpe", Tokenizer::from_gguf(&smollm2.gguf("gpt2", Some("llama-bpe"))).unwrap()),
        ("deepseek-v3", Tokenizer::from_gguf(&smollm2.gguf("gpt2", Some("deepseek-v3"))).unwrap()),
        ("spm", Tokenizer::from_gguf(&sentence_piece().gguf("llama", None)).unwrap()),
        ("tekken", Tokenizer::from_tekken(tekken_json().as_bytes()).unwrap()),
    ];
    let family = "\u{1F469}\u{200D}\u{1F469}\u{200D}\u{1F467}";
    let texts = ["a", "_", "\u{301}", family, " ", "\n", "A", "1", "ab ", "字", "</", "\0"];
    // Optimised code must do a MiB in a second; test builds get a quarter of the text and of the
    // patience.
    let (bytes, seconds_max) = if cfg!(debug_assertions) { (1 << 18, 1.0) } else { (1 << 20, 1.0) };
    for (name, tokenizer) in &tokenizers {
        for text in texts {
            let half = text.repeat((bytes / 2) / text.len());
            // Twice the text may take 2.2 times as long, and the clock's grain. A neighbour in the
            // caches can spoil one measurement; what is not linear fails all of them.
            let fits = || {
                let [small, large] = [&half, &half.repeat(2)].map(|text| time(tokenizer, text));
                large < seconds_max && large < 2.2 * small + 0.05
            };
            assert!((0..5).any(|_| fits()), "{name} {text:?}: too slow, or more than linear");
        }
    }
}

fn t5_steps() {
    let unsupported = "is not supported";
    refused(
        "/normalizer",
        json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        unsupported,
    );
    refused("/normalizer", json!({"type": "BertNormalizer"}), unsupported);
    refused(
        "/normalizer",
        json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
        "not empty",
    );
    refused("/normalizer", json!({"type": "Prepend"}), "a string");
    refused("/normalizer", json!("NFC"), unsupported);
    refused("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), unsupported);
    refused("/pre_tokenizer", json!({"type": "UnicodeScripts"}), unsupported);
    refused(
        "/pre_tokenizer",
        json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "x"}),
        "Removed",
    );
    refused("/pre_tokenizer", json!({"type": "Metaspace", "prepend_scheme": "x"}), "`never`");
    refused(
        "/decoder",
        json!({"type": "Strip", "content": " ", "start": 5, "stop": 1}),
        unsupported,
    );
    refused("/decoder", json!({"type": "CTC"}), unsupported);
    refused("/decoder", json!({"type": "WordPiece"}), unsupported);
    let missing =
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]"}}]});
    refused("/post_processor", missing, "special tokens that exist");
    refused("/post_processor", json!({"type": "BertProcessing"}), unsupported);
    refused("/model/type", json!("Unigram"), "model.type");
    refused("/model/type", json!("WordPiece"), "model.type");
    refused(
        "/model",
        json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}),
        "dropout",
    );
    refused(
        "/model",
        json!({"type": "BPE", "vocab": {"a": 0}, "end_of_word_suffix": "</w>"}),
        "end_of_word",
    );
    t5_whole_files();
}

/// Files wrong as a whole rather than in one step.
fn t5_whole_files() {
    let mut json = valid_json();
    json["truncation"] = json!({"max_length": 4, "stride": 4, "strategy": "LongestFirst"});
    assert!(load(&json).unwrap_err().to_string().contains("stride"));
    let mut nested = json!({"type": "NFC"});
    for _ in 0..40 {
        nested = json!({"type": "Sequence", "normalizers": [nested]});
    }
    refused("/normalizer", nested, "levels deep");
    let wide = json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 10_000]});
    refused("/normalizer", wide, "at most 64 steps");
    for bytes in [&b""[..], b"{", b"[]", b"null", b"\xff", b"{\"model\": 3}", b"{\"model\": {}}"] {
        assert!(Tokenizer::from_tokenizer_json(bytes, None).is_err());
        assert!(Tokenizer::from_tekken(bytes).is_err());
        assert!(
            Tokenizer::from_tokenizer_json(valid_json().to_string().as_bytes(), Some(bytes))
                .is_err()
                || bytes == b"[]"
                || bytes == b"null"
                || bytes.starts_with(b"{\"model")
        );
    }
    let deep = "[".repeat(100_000);
    assert!(Tokenizer::from_tokenizer_json(deep.as_bytes(), None).is_err());
    let tekken: Value = serde_json::from_str(&tekken_json()).unwrap();
    let broken = |pointer: &str, value: Value, hint: &str| {
        let mut json = tekken.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        let error = Tokenizer::from_tekken(json.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    };
    broken("/vocab/300/rank", json!(299), "rank 300");
    broken("/vocab/300/token_bytes", json!("!!"), "base64");
    broken("/vocab/300/token_bytes", json!(""), "bytes of its own");
    broken("/vocab/300/token_bytes", json!("AA=="), "bytes of its own");
    broken("/config/default_vocab_size", json!(1_000_000_000), "default_vocab_size");
    broken("/config/default_num_special_tokens", json!(1_000_000), "default_vocab_size");
    broken("/config/default_num_special_tokens", json!(3), "special_tokens");
    broken("/config/pattern", json!("(?<=a)"), "config.pattern");
}

/// Renders a template for one user message; a template that does not load counts as failing.
fn render(source: &str, messages: usize) -> Result<String, String> {
    let tokenizer = byte_tokenizer(&["<s>", "</s>"]);
    let template = ChatTemplate::new(source).map_err(|error| error.to_string())?;
    let messages = vec![message("user", "hello"); messages];
    let input = RenderInput { messages: &messages, ..RenderInput::default() };
    let prompt = template.render(&tokenizer, &input).map_err(|error| error.to_string())?;
    Ok(prompt.text())
}

/// Renders and expects an error within a time that says "bounded" even on a busy machine.
fn fails(source: &str, hint: &str) {
    let start = cpu_time();
    let error = render(source, 1).expect_err(&source[..source.len().min(200)]);
    assert!(error.contains(hint), "`{error}` does not mention `{hint}`");
    assert!(since(start) < Duration::from_secs(10), "{:?} for {error}", since(start));
}

fn j1_loops() {
    let range = "{% for a in range(100000) %}";
    fails(&format!("{range}{range}x{{% endfor %}}{{% endfor %}}"), "limit");
    fails(&format!("{range}{range}{{% endfor %}}{{% endfor %}}"), "steps");
    fails(
        &format!(
            "{range}{{% set x = messages | list | length %}}{range}{{% endfor %}}{{% endfor %}}"
        ),
        "limit",
    );
}

fn j2_repeats() {
    fails("{{ 'ab' * 10000000000 }}", "bytes");
    fails("{{ 10000000000 * 'ab' }}", "bytes");
    fails("{{ [1] * 10000000000 }}", "bytes");
    fails("{{ 'a\\nb' | indent(100000000000) }}", "indent");
    fails("{{ 'a\\nb' | indent(width=100000000000) }}", "indent");
    fails("{{ '%0100000000000d' | format(1) }}", "width");
    fails("{{ '%0100000000000d' % 1 }}", "width");
    fails("{{ '%*d' | format(100000000000, 1) }}", "width");
    fails("{{ '%.100000000000f' | format(1.0) }}", "width");
    fails("{{ '{:>100000000000}'.format(1) }}", "width");
    fails("{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}", "bytes");
    fails("{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}", "bytes");
    fails("{{ range(100000) | join('b' * 1000000) }}", "bytes");
    fails("{{ ('b' * 1000000).join(range(100000) | list) }}", "bytes");
    fails("{{ {'a': 1} | tojson(indent=100000000000) }}", "indent");
    fails("{{ 'a' | center(100000000000) }}", "");
    fails("{{ range(10) | batch(100000000000, 'x') | list }}", "");
    fails("{{ range(10) | slice(100000000000) | list }}", "");
    fails("{{ 'a'.ljust(100000000000) }}", "");
    fails("{{ 'a'.center(100000000000) }}", "");
    fails("{{ 2 ** 100000000000 }}", "");
}

fn j3_doubling() {
    let doubled =
        |step: &str| format!("{{% set a = 'aaaaaaaa' %}}{}{{{{ a | length }}}}", step.repeat(40));
    fails(&doubled("{% set a = a ~ a %}"), "bytes");
    fails(&doubled("{% set a = a + a %}"), "bytes");
    fails(&doubled("{% set a = [a, a] | join %}"), "bytes");
    fails(&doubled("{% set a = a | replace('a', 'aa') %}"), "bytes");
    fails(&doubled("{% set a %}{{ a }}{{ a }}{% endset %}"), "bytes");
    fails(&doubled("{% set a = '%s%s' % (a, a) %}"), "bytes");
    fails(&doubled("{% set a = '{}{}'.format(a, a) %}"), "bytes");
    fails(&doubled("{% set a = (a ~ 'x') | list | join('aaa') %}"), "bytes");
    let lists = "{% set a = [1, 2] %}".to_owned() + &"{% set a = a + a %}".repeat(40);
    fails(&lists, "bytes");
    // Lists that share their elements are small until something prints them.
    let shared = "{% set a = ['x'] %}".to_owned() + &"{% set a = [a, a] %}".repeat(60);
    for printed in [
        "{{ a }}",
        "{{ a | tojson }}",
        "{{ a | string }}",
        "{{ a ~ '' }}",
        "{{ a | upper }}",
        "{{ 'x' in a | string }}",
        "{{ a in 'x' }}",
        "{{ a | join }}",
        "{{ '%s' % a }}",
        "{{ [a] | map('string') | list }}",
        "{{ a | pprint }}",
        "{{ a | replace('x', 'y') }}",
        "{{ raise_exception(a) }}",
        "{{ a | trim }}",
    ] {
        fails(&(shared.clone() + printed), "");
    }
    let macros = "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set a = 'aaaa' %}".to_owned();
    fails(&(macros + &"{% set a = m(a) %}".repeat(40)), "bytes");
    let raw = format!("{{% for i in range(100000) %}}{}{{% endfor %}}", "x".repeat(30_000));
    fails(&raw, "bytes");
    let captured = format!(
        "{{% set a %}}{{% for i in range(100000) %}}{}{{% endfor %}}{{% endset %}}",
        "x".repeat(30_000)
    );
    fails(&captured, "bytes");
    let slices = "{% set a = 'x' * 1000000 %}{% set ns = namespace(l=[]) %}{% for i in range(1\
            0000) %}{% set ns.l = ns.l + [a[1:]] %}{% endfor %}";
    fails(slices, "bytes");
}

fn j4_nesting() {
    for (open, close) in [
        ("not ", ""),
        ("(", ")"),
        ("[", "]"),
        ("-", ""),
        ("{'a':", "}"),
        ("1 if 1 else ", ""),
        ("2 ** ", ""),
        ("1 ~ ", ""),
        ("1 + ", ""),
        ("1 and ", ""),
        ("1 == ", ""),
        ("f(", ")"),
    ] {
        for depth in [500, 8000, 65_000 / (open.len() + close.len())] {
            let depth = depth.min(65_000 / (open.len() + close.len()));
            let source = format!("{{{{ {}1{} }}}}", open.repeat(depth), close.repeat(depth));
            let start = cpu_time();
            // A chain of comparisons is no nesting and may render; nothing may crash.
            let result = render(&source, 1);
            assert!(result.is_err() || open == "1 == ", "{open} x {depth}");
            assert!(since(start) < Duration::from_secs(20), "{open} x {depth}");
        }
    }
    fails(&format!("{{{{ a{} }}}}", "|upper".repeat(9000)), "");
    fails(&format!("{{{{ a{} }}}}", ".b".repeat(30_000)), "");
    fails(&format!("{{{{ a{} }}}}", "[0]".repeat(20_000)), "");
    fails(&format!("{{{{ a{} }}}}", "()".repeat(30_000)), "");
    fails(&("{% if 1 %}".repeat(3000) + &"{% endif %}".repeat(3000)), "");
    fails(&("{% if 0 %}".to_owned() + &"{% elif 0 %}".repeat(5000) + "{% endif %}"), "");
    fails(&("{% for a in b %}".repeat(2000) + &"{% endfor %}".repeat(2000)), "");
    // Values nested by a loop: built without recursion, but dropped and printed with it.
    let nested = "{% set ns = namespace(a=[]) %}{% for i in range(100000) %}{% set ns.a = [ns.\
            a] %}{% endfor %}";
    let _ = render(nested, 1);
    for printed in
        ["{{ ns.a }}", "{{ ns.a | tojson }}", "{{ ns.a == [ns.a] }}", "{{ [ns.a, ns.a] | sort }}"]
    {
        let _ = render(&(nested.to_owned() + printed), 1);
    }
    assert!(ChatTemplate::new(&" ".repeat(65_537)).is_err());
}

fn j5_recursion() {
    fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "");
    fails("{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}", "");
    fails("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "");
    fails("{% include 'chat_template' %}", "include");
    fails("{% extends 'chat_template' %}", "extends");
    fails("{% import 'chat_template' as x %}", "import");
    fails("{% block a %}{{ self.a() }}{% endblock %}", "block");
}

fn j6_reach() {
    for source in [
        "{{ ''.__class__.__mro__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include '/etc/passwd' %}",
        "{{ open('/etc/passwd') }}",
        "{{ env('HOME') }}",
        "{{ messages.append(1) }}",
        "{{ debug() }}",
        "{{ self._TemplateReference__context }}",
        "{{ strftime_now('%Y') }}",
        "{{ request.application }}",
    ] {
        let result = render(source, 1);
        assert!(
            result.as_ref().is_err_and(|e| !e.contains('/') || e.contains("include")),
            "{source}: {result:?}"
        );
    }
    assert_eq!(
        render("{{ namespace.__class__ }}{{ x.__class__ is defined }}", 1).unwrap_or_default(),
        ""
    );
}

fn j7_many_turns() {
    let source = "{% set ns = namespace(m=[]) %}{% for m in messages %}{% set ns.m = ns.m + [m\
            ] %}{% endfor %}{{ ns.m | length }}";
    for turns in [100, 1000] {
        assert_eq!(render(source, turns).unwrap(), turns.to_string());
    }
    let start = cpu_time();
    // Quadratic: the budget decides, not the patience of the server.
    assert!(render(source, 16_000).is_err());
    assert!(since(start) < Duration::from_secs(10), "{:?}", since(start));
    let source = "{% for m in messages %}{{ m.role + ': ' + m.content | trim }}{% endfor %}";
    assert!(render(source, 16_000).is_ok());
}

fn j8_errors() {
    for source in
        ["{{", "{% if %}", "{% for %}", "{{ 'a }}", "{% endif %}", "{% nonsense %}", "{{ a b }}"]
    {
        let error = ChatTemplate::new(source).unwrap_err();
        assert!(matches!(error, LoadError::Malformed { file: "chat template", .. }), "{error}");
    }
    let tokenizer = byte_tokenizer(&["<s>", "</s>"]);
    let refuse = ChatTemplate::new("{{ raise_exception('roles must alternate') }}").unwrap();
    let result = refuse.render(&tokenizer, &RenderInput::default());
    assert_eq!(result, Err(RenderError::Refused("roles must alternate".into())));
    fails("{{ 'x' * 100000000 }}", "bytes");
    fails("{{ messages[0].nothing.more }}", "failed");
    fails("{{ 1 | nonsense }}", "nonsense");
}
