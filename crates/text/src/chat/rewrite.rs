//! Rebuilds a parsed template so that everything that can grow goes through the budget.
//!
//! `a ~ b`, `a + b`, `a * b` and `a % b` become calls of functions named `~`, `+`, `*` and `%`,
//! names that no template can spell or shadow; filters and slices are wrapped in `paid`; raw text
//! becomes an expression so that it passes the formatter. The meaning stays the same.

use minijinja::machinery::Span;
use minijinja::machinery::ast::{self, BinOpKind, CallArg, CompareOpKind, Expr, Spanned, Stmt};
use minijinja::{Error, ErrorKind, Value};

/// Deepest nesting of a template; the engine's own parser allows 150 for most constructs, but not
/// for all (`not not not …`, `a ~ a ~ a …`).
const DEPTH_MAX: usize = 400;

/// Function names used in rebuilt templates; none can be written in a template.
pub(super) const CONCAT: &str = "~";
pub(super) const ADD: &str = "+";
pub(super) const MULTIPLY: &str = "*";
pub(super) const REMAINDER: &str = "%";
/// Charges its argument and returns it.
pub(super) const PAID: &str = "()";
/// Returns its argument if its text would be short.
pub(super) const SMALL: &str = "<>";

/// Rebuilds a whole template.
///
/// # Errors
/// A syntax error when it is nested too deeply.
pub(super) fn bounded<'a>(template: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
    Rewriter { depth: 0 }.stmt(template)
}

struct Rewriter {
    depth: usize,
}

type Rebuilt<T> = Result<T, Error>;

impl Rewriter {
    fn enter(&mut self) -> Rebuilt<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let message = format!("template nests more than {DEPTH_MAX} levels deep");
            return Err(Error::new(ErrorKind::SyntaxError, message));
        }
        Ok(())
    }

    fn stmts<'a>(&mut self, list: &[Stmt<'a>]) -> Rebuilt<Vec<Stmt<'a>>> {
        list.iter().map(|stmt| self.stmt(stmt)).collect()
    }

    fn stmt<'a>(&mut self, stmt: &Stmt<'a>) -> Rebuilt<Stmt<'a>> {
        self.enter()?;
        let rebuilt = match stmt {
            Stmt::Template(s) => {
                let children = self.stmts(&s.children)?;
                Stmt::Template(Spanned::new(ast::Template { children }, s.span()))
            }
            Stmt::EmitExpr(s) => {
                let expr = self.expr(&s.expr)?;
                Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr }, s.span()))
            }
            Stmt::EmitRaw(s) => {
                let value = ast::Const { value: Value::from(s.raw) };
                let expr = Expr::Const(Spanned::new(value, s.span()));
                Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr }, s.span()))
            }
            Stmt::Set(s) => {
                let (target, expr) = (self.expr(&s.target)?, self.expr(&s.expr)?);
                Stmt::Set(Spanned::new(ast::Set { target, expr }, s.span()))
            }
            Stmt::Do(s) => Stmt::Do(Spanned::new(ast::Do { call: self.call(&s.call)? }, s.span())),
            Stmt::Continue(s) => Stmt::Continue(Spanned::new(ast::Continue, s.span())),
            Stmt::Break(s) => Stmt::Break(Spanned::new(ast::Break, s.span())),
            _ => self.block(stmt)?,
        };
        self.depth -= 1;
        Ok(rebuilt)
    }

    /// Statements with a body.
    fn block<'a>(&mut self, stmt: &Stmt<'a>) -> Rebuilt<Stmt<'a>> {
        Ok(match stmt {
            Stmt::ForLoop(s) => {
                let rebuilt = ast::ForLoop {
                    target: self.expr(&s.target)?,
                    iter: self.expr(&s.iter)?,
                    filter_expr: self.option(s.filter_expr.as_ref())?,
                    recursive: s.recursive,
                    body: self.stmts(&s.body)?,
                    else_body: self.stmts(&s.else_body)?,
                };
                Stmt::ForLoop(Spanned::new(rebuilt, s.span()))
            }
            Stmt::IfCond(s) => {
                let rebuilt = ast::IfCond {
                    expr: self.expr(&s.expr)?,
                    true_body: self.stmts(&s.true_body)?,
                    false_body: self.stmts(&s.false_body)?,
                };
                Stmt::IfCond(Spanned::new(rebuilt, s.span()))
            }
            Stmt::WithBlock(s) => {
                let mut assignments = Vec::with_capacity(s.assignments.len());
                for (target, value) in &s.assignments {
                    assignments.push((self.expr(target)?, self.expr(value)?));
                }
                let body = self.stmts(&s.body)?;
                Stmt::WithBlock(Spanned::new(ast::WithBlock { assignments, body }, s.span()))
            }
            Stmt::SetBlock(s) => {
                let rebuilt = ast::SetBlock {
                    target: self.expr(&s.target)?,
                    filter: self.option(s.filter.as_ref())?,
                    body: self.stmts(&s.body)?,
                };
                Stmt::SetBlock(Spanned::new(rebuilt, s.span()))
            }
            Stmt::FilterBlock(s) => {
                let (filter, body) = (self.expr(&s.filter)?, self.stmts(&s.body)?);
                Stmt::FilterBlock(Spanned::new(ast::FilterBlock { filter, body }, s.span()))
            }
            Stmt::Macro(s) => Stmt::Macro(self.macro_decl(s)?),
            Stmt::CallBlock(s) => {
                let call = self.call(&s.call)?;
                let macro_decl = self.macro_decl(&s.macro_decl)?;
                Stmt::CallBlock(Spanned::new(ast::CallBlock { call, macro_decl }, s.span()))
            }
            other => return Err(no_such_statement(other)),
        })
    }

    fn macro_decl<'a>(&mut self, s: &Spanned<ast::Macro<'a>>) -> Rebuilt<Spanned<ast::Macro<'a>>> {
        let rebuilt = ast::Macro {
            name: s.name,
            args: self.exprs(&s.args)?,
            defaults: self.exprs(&s.defaults)?,
            body: self.stmts(&s.body)?,
        };
        Ok(Spanned::new(rebuilt, s.span()))
    }

    fn exprs<'a>(&mut self, list: &[Expr<'a>]) -> Rebuilt<Vec<Expr<'a>>> {
        list.iter().map(|expr| self.expr(expr)).collect()
    }

    fn option<'a>(&mut self, expr: Option<&Expr<'a>>) -> Rebuilt<Option<Expr<'a>>> {
        expr.map(|expr| self.expr(expr)).transpose()
    }

    fn args<'a>(&mut self, list: &[CallArg<'a>]) -> Rebuilt<Vec<CallArg<'a>>> {
        let mut out = Vec::with_capacity(list.len());
        for arg in list {
            out.push(match arg {
                CallArg::Pos(expr) => CallArg::Pos(self.expr(expr)?),
                CallArg::Kwarg(name, expr) => CallArg::Kwarg(name, self.expr(expr)?),
                CallArg::PosSplat(expr) => CallArg::PosSplat(self.expr(expr)?),
                CallArg::KwargSplat(expr) => CallArg::KwargSplat(self.expr(expr)?),
            });
        }
        Ok(out)
    }

    fn call<'a>(&mut self, s: &Spanned<ast::Call<'a>>) -> Rebuilt<Spanned<ast::Call<'a>>> {
        let (expr, args) = (self.expr(&s.expr)?, self.args(&s.args)?);
        Ok(Spanned::new(ast::Call { expr, args }, s.span()))
    }

    fn expr<'a>(&mut self, expr: &Expr<'a>) -> Rebuilt<Expr<'a>> {
        self.enter()?;
        let rebuilt = match expr {
            Expr::Var(s) => Expr::Var(Spanned::new(ast::Var { id: s.id }, s.span())),
            Expr::Const(s) => {
                let value = s.value.clone();
                Expr::Const(Spanned::new(ast::Const { value }, s.span()))
            }
            Expr::BinOp(s) => self.operator(s)?,
            Expr::Filter(s) => self.filter(s)?,
            Expr::Call(s) => Expr::Call(self.call(s)?),
            Expr::Slice(s) => {
                let rebuilt = ast::Slice {
                    expr: self.expr(&s.expr)?,
                    start: self.option(s.start.as_ref())?,
                    stop: self.option(s.stop.as_ref())?,
                    step: self.option(s.step.as_ref())?,
                };
                let slice = Expr::Slice(Spanned::new(rebuilt, s.span()));
                invoke(PAID, vec![slice], s.span())
            }
            Expr::Compare(s) => {
                let has_in = s.ops.iter().any(|o| is_containment(o.op));
                let mut first = self.expr(&s.expr)?;
                if has_in {
                    first = invoke(SMALL, vec![first], s.span());
                }
                let mut ops = Vec::with_capacity(s.ops.len());
                for operation in &s.ops {
                    let expr = self.expr(&operation.expr)?;
                    ops.push(ast::CompareOp { op: operation.op, expr });
                }
                Expr::Compare(Spanned::new(ast::Compare { expr: first, ops }, s.span()))
            }
            _ => self.plain(expr)?,
        };
        self.depth -= 1;
        Ok(rebuilt)
    }

    /// Expressions that create nothing big themselves.
    fn plain<'a>(&mut self, expr: &Expr<'a>) -> Rebuilt<Expr<'a>> {
        Ok(match expr {
            Expr::UnaryOp(s) => {
                let (not, neg) = (ast::UnaryOpKind::Not, ast::UnaryOpKind::Neg);
                let op = if matches!(s.op, ast::UnaryOpKind::Not) { not } else { neg };
                let rebuilt = ast::UnaryOp { op, expr: self.expr(&s.expr)? };
                Expr::UnaryOp(Spanned::new(rebuilt, s.span()))
            }
            Expr::IfExpr(s) => {
                let rebuilt = ast::IfExpr {
                    test_expr: self.expr(&s.test_expr)?,
                    true_expr: self.expr(&s.true_expr)?,
                    false_expr: self.option(s.false_expr.as_ref())?,
                };
                Expr::IfExpr(Spanned::new(rebuilt, s.span()))
            }
            Expr::Test(s) => {
                let (expr, args) = (self.expr(&s.expr)?, self.args(&s.args)?);
                Expr::Test(Spanned::new(ast::Test { name: s.name, expr, args }, s.span()))
            }
            Expr::GetAttr(s) => {
                let expr = self.expr(&s.expr)?;
                Expr::GetAttr(Spanned::new(ast::GetAttr { expr, name: s.name }, s.span()))
            }
            Expr::GetItem(s) => {
                let (expr, subscript_expr) = (self.expr(&s.expr)?, self.expr(&s.subscript_expr)?);
                Expr::GetItem(Spanned::new(ast::GetItem { expr, subscript_expr }, s.span()))
            }
            Expr::List(s) => {
                let items = self.exprs(&s.items)?;
                Expr::List(Spanned::new(ast::List { items }, s.span()))
            }
            Expr::Tuple(s) => {
                let items = self.exprs(&s.items)?;
                Expr::Tuple(Spanned::new(ast::Tuple { items }, s.span()))
            }
            Expr::Map(s) => {
                let (keys, values) = (self.exprs(&s.keys)?, self.exprs(&s.values)?);
                Expr::Map(Spanned::new(ast::Map { keys, values }, s.span()))
            }
            other => {
                let message = format!("unexpected {}", other.description());
                return Err(Error::new(ErrorKind::SyntaxError, message));
            }
        })
    }

    fn operator<'a>(&mut self, s: &Spanned<ast::BinOp<'a>>) -> Rebuilt<Expr<'a>> {
        let (mut left, right) = (self.expr(&s.left)?, self.expr(&s.right)?);
        let name = match s.op {
            BinOpKind::Concat => CONCAT,
            BinOpKind::Add => ADD,
            BinOpKind::Mul => MULTIPLY,
            BinOpKind::Rem => REMAINDER,
            op => {
                if matches!(op, BinOpKind::In) {
                    left = invoke(SMALL, vec![left], s.span());
                }
                return Ok(Expr::BinOp(Spanned::new(ast::BinOp { op, left, right }, s.span())));
            }
        };
        Ok(invoke(name, vec![left, right], s.span()))
    }

    fn filter<'a>(&mut self, s: &Spanned<ast::Filter<'a>>) -> Rebuilt<Expr<'a>> {
        let has_input = s.expr.is_some();
        let expr = self.option(s.expr.as_ref())?;
        let args = self.args(&s.args)?;
        let filter = Expr::Filter(Spanned::new(ast::Filter { name: s.name, expr, args }, s.span()));
        // The filter of a block has no input of its own; what it makes is paid for when emitted.
        Ok(if has_input { invoke(PAID, vec![filter], s.span()) } else { filter })
    }
}

/// Does this operator look for its left side inside its right side?
fn is_containment(op: CompareOpKind) -> bool {
    matches!(op, CompareOpKind::In | CompareOpKind::NotIn)
}

/// A call of one of our own functions.
fn invoke<'a>(name: &'static str, args: Vec<Expr<'a>>, span: Span) -> Expr<'a> {
    let expr = Expr::Var(Spanned::new(ast::Var { id: name }, span));
    let args = args.into_iter().map(CallArg::Pos).collect();
    Expr::Call(Spanned::new(ast::Call { expr, args }, span))
}

/// Templates are one file: including and extending others, and escaping HTML, are refused.
fn no_such_statement(stmt: &Stmt<'_>) -> Error {
    let name = match stmt {
        Stmt::AutoEscape(_) => "autoescape",
        Stmt::Block(_) => "block",
        Stmt::Import(_) | Stmt::FromImport(_) => "import",
        Stmt::Extends(_) => "extends",
        Stmt::Include(_) => "include",
        _ => "this statement",
    };
    Error::new(ErrorKind::SyntaxError, format!("`{name}` is not allowed in chat templates"))
}
