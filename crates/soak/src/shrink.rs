//! Makes a program that fails smaller, as long as it fails.

use crate::{
    mock::Setting,
    program::{Program, What},
};

/// Removes what can be removed while `fails` holds: the setting's faults, guards and schedule, steps,
/// operations of groups, steps of graphs. `budget` limits how often it is asked.
pub fn shrink(
    program: &Program,
    setting: &Setting,
    mut budget: usize,
    mut fails: impl FnMut(&Program, &Setting) -> bool,
) -> (Program, Setting) {
    let (mut program, mut setting) = (program.clone(), setting.clone());
    let plain = Setting::plain();
    let simpler = [
        plain.clone(),
        Setting { faults: plain.faults.clone(), ..setting.clone() },
        Setting { guards: plain.guards, faults: plain.faults.clone(), ..setting.clone() },
        Setting { schedule: plain.schedule, ..setting.clone() },
    ];
    for candidate in simpler {
        if budget > 0 {
            budget -= 1;
            if fails(&program, &candidate) {
                setting = candidate;
                break;
            }
        }
    }
    loop {
        let before = weight(&program);
        let mut size = weight(&program).div_ceil(2);
        while size > 0 {
            let mut start = 0;
            while start < weight(&program) && budget > 0 {
                let candidate = without(&program, start, size);
                budget -= 1;
                if weight(&candidate) < weight(&program) && fails(&candidate, &setting) {
                    program = candidate;
                } else {
                    start += size;
                }
            }
            size /= 2;
        }
        if budget == 0 || weight(&program) == before {
            return (program, setting);
        }
    }
}

/// What can be taken out on its own: a step, or a part of one.
#[derive(Clone, Copy)]
enum Slot {
    Step(usize),
    /// A step of a graph.
    Inner(usize, usize),
    Operation(usize, usize),
}

fn slots(program: &Program) -> Vec<Slot> {
    let mut slots = Vec::new();
    for (index, step) in program.steps.iter().enumerate() {
        slots.push(Slot::Step(index));
        match &step.what {
            What::Define { body, .. } => {
                slots.extend((0..body.len()).map(|inner| Slot::Inner(index, inner)));
            }
            What::Meet { ops, .. } if ops.len() > 1 => {
                slots.extend((0..ops.len()).map(|op| Slot::Operation(index, op)));
            }
            _ => {}
        }
    }
    slots
}

fn without(program: &Program, start: usize, size: usize) -> Program {
    let mut program = program.clone();
    let slots = slots(&program);
    // From the back, so that numbers stay.
    for &slot in slots[start..slots.len().min(start + size)].iter().rev() {
        match slot {
            Slot::Step(index) => drop(program.steps.remove(index)),
            Slot::Inner(index, inner) => {
                if let What::Define { body, .. } = &mut program.steps[index].what {
                    body.remove(inner);
                }
            }
            Slot::Operation(index, op) => {
                if let What::Meet { ops, .. } = &mut program.steps[index].what {
                    ops.remove(op);
                }
            }
        }
    }
    program.prune();
    program
}

fn weight(program: &Program) -> usize {
    slots(program).len()
}
