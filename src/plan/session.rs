//! Plans on a device.

use std::sync::Arc;

use super::{Plan, ids, slot_id};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Context, Dtype, Program};
use crate::graph::{Graph, Home, Tensors, ValueId};

/// The flat buffers that outlive a step: parameters, gradients and running statistics.
#[derive(Debug)]
pub struct Store {
    /// Parameters.
    pub params: Buffer,
    /// Gradients, in the parameters' layout.
    pub grads: Buffer,
    /// Running statistics.
    pub state: Buffer,
    /// What the parameters are.
    pub param_list: Tensors,
    /// What the running statistics are.
    pub state_list: Tensors,
}

impl Store {
    /// Allocates the buffers for `graph`, with initial values drawn from `seed`.
    ///
    /// # Errors
    /// As [`Context::buffer`].
    pub fn new(ctx: &Context, graph: &Graph, seed: u32) -> Result<Self> {
        let bytes = |t: &Tensors| t.flat_len() as u64 * 4;
        let needs_grads = graph.values().iter().any(|v| matches!(v.home, Home::Grad(_)));
        let store = Self {
            params: ctx.buffer("semgen.params", bytes(&graph.params))?,
            grads: ctx.buffer("semgen.grads", if needs_grads { bytes(&graph.params) } else { 4 })?,
            state: ctx.buffer("semgen.state", bytes(&graph.state))?,
            param_list: graph.params.clone(),
            state_list: graph.state.clone(),
        };
        ctx.upload(&store.params, 0, &graph.params.initial(seed));
        ctx.upload(&store.state, 0, &graph.state.initial(seed));
        Ok(store)
    }
}

/// A plan with its buffers and pipelines.
#[derive(Debug)]
pub struct Session {
    plan: Arc<Plan>,
    slots: Vec<Arc<Buffer>>,
    program: Program,
}

impl Session {
    /// Allocates the slots of `plan` and makes its dispatches ready to run on `store`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the store was made for other parameters, and what the device reports.
    pub fn new(ctx: &Context, plan: Plan, store: &Store) -> Result<Self> {
        let none = vec![None; plan.slots.len()];
        Self::on(ctx, plan, store, &none)
    }

    /// As [`Session::new`], in the memory of another session as far as that suffices ([`Plan::borrow`]): a run of one
    /// leaves nothing of what the other has computed. Inputs of the same name and size are common to both.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn beside(ctx: &Context, plan: Plan, store: &Store, other: &Self) -> Result<Self> {
        let borrowed = plan.borrow(&other.plan);
        let theirs: Vec<_> = borrowed.iter().map(|b| b.map(|slot| other.slots[slot].clone())).collect();
        Self::on(ctx, plan, store, &theirs)
    }

    fn on(ctx: &Context, plan: Plan, store: &Store, given: &[Option<Arc<Buffer>>]) -> Result<Self> {
        if plan.graph.params != store.param_list || plan.graph.state != store.state_list {
            return Err(Error::shape("session", "the plan's parameters are not the store's"));
        }
        let slot = |(given, &bytes): (&Option<Arc<Buffer>>, &u64)| match given {
            Some(buffer) => Ok(buffer.clone()),
            None => ctx.buffer("semgen.slot", bytes).map(Arc::new),
        };
        let slots = given.iter().zip(&plan.slots).map(slot).collect::<Result<Vec<_>>>()?;
        let program = Program::new(ctx, &plan.dispatches, |id| match id {
            ids::PARAMS => &store.params,
            ids::GRADS => &store.grads,
            ids::STATE => &store.state,
            slot => &slots[(slot.0 - slot_id(0).0) as usize],
        })?;
        Ok(Self { plan: Arc::new(plan), slots, program })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What is replayed, one step for each of the plan's dispatches.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Replays the plan once; returns without waiting.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run(&self, ctx: &Context) -> Result<()> {
        self.program.run(ctx)
    }

    /// The buffer of the input called `name`.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none.
    pub fn input(&self, name: &str) -> Result<&Buffer> {
        self.named(self.plan.graph.inputs(), name)
    }

    /// The buffer of the output called `name`.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none.
    pub fn output(&self, name: &str) -> Result<&Buffer> {
        self.named(self.plan.graph.outputs(), name)
    }

    /// Reads several outputs (4-byte elements) with one wait for the device.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn read_all<T: bytemuck::Pod>(&self, ctx: &Context, names: &[&str]) -> Result<Vec<Vec<T>>> {
        let outputs = self.plan.graph.outputs();
        let of = |name: &&str| Ok((self.named(outputs, name)?, self.plan.graph.shape(self.find(outputs, name)?.1).len()));
        ctx.read_all(&names.iter().map(of).collect::<Result<Vec<_>>>()?)
    }

    /// Reads the output called `name` (4-byte elements; outputs are never stored in 16 bits), waiting for the device.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none, and what the device reports.
    pub fn read<T: bytemuck::Pod>(&self, ctx: &Context, name: &str) -> Result<Vec<T>> {
        let buffer = self.named(self.plan.graph.outputs(), name)?;
        let (_, value) = self.find(self.plan.graph.outputs(), name)?;
        ctx.read(buffer, 0, self.plan.graph.shape(*value).len())
    }

    /// Reads any value that has a slot as 32-bit floats, however it is stored; meaningful for plans made with
    /// [`Plan::unshared`].
    ///
    /// # Errors
    /// What the device reports.
    pub fn read_value(&self, ctx: &Context, value: ValueId) -> Result<Option<Vec<f32>>> {
        let Some(slot) = self.plan.slot(value) else { return Ok(None) };
        let (buffer, value) = (&self.slots[slot], &self.plan.graph.values()[value.0]);
        let n = value.shape.len();
        Ok(Some(match value.dtype {
            Dtype::F32 => ctx.read(buffer, 0, n)?,
            // Whole words are copied.
            Dtype::F16 => {
                let halves: Vec<u16> = ctx.read(buffer, 0, n.next_multiple_of(2))?;
                halves[..n].iter().map(|&h| half::f16::from_bits(h).to_f32()).collect()
            }
        }))
    }

    fn find<'a>(&self, list: &'a [(String, ValueId)], name: &str) -> Result<&'a (String, ValueId)> {
        list.iter().find(|(n, _)| n == name).ok_or_else(|| {
            let known: Vec<_> = list.iter().map(|(n, _)| n.as_str()).collect();
            Error::Usage(format!("the plan has no `{name}`; it has {known:?}"))
        })
    }

    fn named(&self, list: &[(String, ValueId)], name: &str) -> Result<&Buffer> {
        let (_, value) = self.find(list, name)?;
        self.plan.slot(*value).map(|s| &*self.slots[s]).ok_or_else(|| Error::Usage(format!("`{name}` does not live in a slot")))
    }
}
