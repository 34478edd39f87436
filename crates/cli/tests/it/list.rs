//! The catalogue as users see it.

use std::fs;

use crate::world::World;

#[test]
fn the_catalogue_is_listed() {
    let world = World::new("list");
    let table = world.run(&["list"]).succeeded().out;
    for name in ["smollm2-135m-moe", "qwen3-30b-a3b", "mistral-small-4", "ABOUT"] {
        assert!(table.contains(name), "no `{name}` in:\n{table}");
    }
    assert!(!table.contains('\x1b'), "no colours in a pipe");
    let listed = world.run(&["ls", "--json"]).json();
    let models = listed["models"].as_array().unwrap();
    let default = models.iter().find(|model| model["default"] == true).unwrap();
    assert_eq!(default["name"], "smollm2-135m-moe");
    assert_eq!(default["made_from"], "smollm2-135m");
    assert!(default["local"].is_null());
    assert!(models.iter().all(|m| m["parameters"]["total"].as_u64() > Some(1_000_000)));
    assert!(
        world.run(&["list", "--local", "--json"]).json()["models"].as_array().unwrap().is_empty()
    );
}

#[test]
fn a_wrong_catalogue_of_the_users_is_named() {
    let world = World::new("list_wrong");
    fs::write(world.home.join("models.toml"), "[[model]]\nname = 3\n").unwrap();
    world.run(&["list"]).failed_saying(&["in your catalogue", "models.toml", "name"]);
}

#[test]
fn a_model_whose_file_changed_is_not_local() {
    let world = World::new("list_changed");
    let dir = world.home.join("models/smollm2-135m");
    fs::create_dir_all(&dir).unwrap();
    let is_local = |record: &str| {
        fs::write(dir.join("moeba.json"), record).unwrap();
        let listed = world.run(&["list", "--local", "--json"]).json();
        !listed["models"].as_array().unwrap().is_empty()
    };
    fs::write(dir.join("x.gguf"), "123").unwrap();
    let record = |name: &str, bytes: usize| {
        format!(
            "{{\"files\": [{{\"name\": {name:?}, \"bytes\": {bytes}, \"sha256\": \"0\"}}], \
             \"source\": \"s\"}}"
        )
    };
    assert!(is_local(&record("x.gguf", 3)));
    assert!(!is_local(&record("x.gguf", 4)), "the size differs");
    assert!(!is_local(&record("../smollm2-135m/x.gguf", 3)), "a path is not a name");
    assert!(!is_local("{\"files\": [], \"source\": \"s\"}"));
    assert!(!is_local("not JSON"));
}
