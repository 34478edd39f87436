//! Sizes: how long, how wide, how deep. The limits are `STYLE.md`'s.

use super::{Findings, Source};
use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 70;
const PARAMETERS: usize = 6;
const TRAIT_METHODS: usize = 8;
const STRUCT_FIELDS: usize = 16;
const NESTING: usize = 4;
const COLUMNS: usize = 100;

/// Files that may be longer than the limit, each with its reason. The list may only shrink.
const LONG_FILES: &[&str] = &[];

/// Checks one file against every size limit.
pub(crate) fn check(source: &Source, findings: &mut Findings) {
    if source.syntax.attrs.iter().all(|a| !is_inner_doc(a)) {
        findings.push(format!("{}:1: no `//!` that says why this file exists", source.path));
    }
    for (index, line) in source.text.lines().enumerate() {
        if line.chars().count() > COLUMNS && !line.contains("http") {
            findings.push(format!("{}:{}: wider than {COLUMNS}", source.path, index + 1));
        }
    }
    if source.is_test() {
        return;
    }
    let lines = code_lines(source);
    if lines > FILE_LINES && !LONG_FILES.contains(&source.path.as_str()) {
        findings.push(format!("{}:1: {lines} lines, limit {FILE_LINES}", source.path));
    }
    let mut visitor = Shapes { path: &source.path, findings, depth: 0 };
    visitor.visit_file(&source.syntax);
}

/// Lines of the file that are not its `#[cfg(test)]` modules.
pub(crate) fn code_lines(source: &Source) -> usize {
    let tests: usize = source.syntax.items.iter().filter(|i| is_test_item(i)).map(span_lines).sum();
    source.text.lines().count() - tests
}

fn span_lines<T: Spanned>(node: &T) -> usize {
    node.span().end().line - node.span().start().line + 1
}

fn is_inner_doc(attribute: &syn::Attribute) -> bool {
    matches!(attribute.style, syn::AttrStyle::Inner(_)) && attribute.path().is_ident("doc")
}

fn is_test_item(item: &syn::Item) -> bool {
    matches!(item, syn::Item::Mod(module) if has_cfg_test(&module.attrs))
}

/// Whether the attributes hold `#[cfg(test)]` or a `cfg` that mentions `test`.
fn has_cfg_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| match &a.meta {
        syn::Meta::List(list) => {
            list.path.is_ident("cfg") && list.tokens.to_string().contains("test")
        }
        _ => false,
    })
}

struct Shapes<'a> {
    path: &'a str,
    findings: &'a mut Findings,
    depth: usize,
}

impl Shapes<'_> {
    fn limit(&mut self, span: Span, what: &str, found: usize, limit: usize) {
        if found > limit {
            let line = span.start().line;
            self.findings.push(format!("{}:{line}: {what}: {found}, limit {limit}", self.path));
        }
    }

    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let name = &signature.ident;
        let lines = span_lines(block);
        self.limit(name.span(), &format!("lines of `{name}`"), lines, FUNCTION_LINES);
        let parameters = signature.inputs.len();
        self.limit(name.span(), &format!("parameters of `{name}`"), parameters, PARAMETERS);
    }

    /// Visits a control-flow body one level deeper.
    fn nested(&mut self, span: Span, walk: impl FnOnce(&mut Self)) {
        self.depth += 1;
        self.limit(span, "nesting", self.depth, NESTING);
        walk(self);
        self.depth -= 1;
    }
}

impl<'ast> Visit<'ast> for Shapes<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !has_cfg_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(&function.sig, &function.block);
        let outer = std::mem::take(&mut self.depth);
        visit::visit_item_fn(self, function);
        self.depth = outer;
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        let methods = item.items.iter().filter(|i| matches!(i, syn::TraitItem::Fn(_))).count();
        // The vector trait is an instruction set, not an interface: its size is the hardware's.
        if item.ident != "Simd" {
            let what = format!("methods of trait `{}`", item.ident);
            self.limit(item.ident.span(), &what, methods, TRAIT_METHODS);
        }
        visit::visit_item_trait(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        let what = format!("fields of `{}`", item.ident);
        self.limit(item.ident.span(), &what, item.fields.len(), STRUCT_FIELDS);
        visit::visit_item_struct(self, item);
    }

    fn visit_expr_if(&mut self, node: &'ast syn::ExprIf) {
        self.visit_expr(&node.cond);
        self.nested(node.span(), |this| this.visit_block(&node.then_branch));
        match node.else_branch.as_ref().map(|(_, branch)| &**branch) {
            // `else if` continues the chain at the same depth: it reads as one list of cases.
            Some(syn::Expr::If(chained)) => self.visit_expr_if(chained),
            Some(other) => self.nested(node.span(), |this| this.visit_expr(other)),
            None => {}
        }
    }

    fn visit_expr_for_loop(&mut self, node: &'ast syn::ExprForLoop) {
        self.nested(node.span(), |this| visit::visit_expr_for_loop(this, node));
    }

    fn visit_expr_while(&mut self, node: &'ast syn::ExprWhile) {
        self.nested(node.span(), |this| visit::visit_expr_while(this, node));
    }

    fn visit_expr_loop(&mut self, node: &'ast syn::ExprLoop) {
        self.nested(node.span(), |this| visit::visit_expr_loop(this, node));
    }

    fn visit_expr_match(&mut self, node: &'ast syn::ExprMatch) {
        self.nested(node.span(), |this| visit::visit_expr_match(this, node));
    }
}
