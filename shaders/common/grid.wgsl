// Workgroups are numbered linearly and folded over x and y; `count` is @builtin(num_workgroups).
fn flat_group(group: vec3<u32>, count: vec3<u32>) -> u32 {
    return group.x + group.y * count.x;
}
