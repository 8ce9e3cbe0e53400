//! Work that ends: `batch/v1`.

use crate::resource::Resource;

fn batch(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("batch", "v1", kind, plural)
}

pub fn resources() -> Vec<Resource> {
    vec![
        batch("CronJob", "cronjobs").short("cj").all().status().columns(
            "Schedule, Timezone, ?Suspend, #Active, Last Schedule, Age, +Containers, +Images, +Selector",
        ),
        batch("Job", "jobs")
            .all()
            .status()
            .columns("Status, Completions, Duration, Age, +Containers, +Images, +Selector"),
    ]
}
