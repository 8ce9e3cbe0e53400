//! Work that ends: `batch/v1`.

pub mod cron_job;
pub mod job;
pub mod job_policy;
pub mod job_status;
pub mod schedule;

use crate::resource::Resource;

fn batch(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("batch", "v1", kind, plural)
}

pub fn resources() -> Vec<Resource> {
    vec![
        batch("CronJob", "cronjobs")
            .short("cj")
            .all()
            .status()
            .columns(
                "Schedule, Timezone, ?Suspend, #Active, Last Schedule, Age, +Containers, +Images, +Selector",
            )
            .rules(cron_job::CronJob),
        batch("Job", "jobs")
            .all()
            .status()
            .columns("Status, Completions, Duration, Age, +Containers, +Images, +Selector")
            .rules(job::Job),
    ]
}
