//! One of a StatefulSet, who writes down numbers on a volume: each life of the pod goes on where the last one stopped. If
//! two ever wrote at once, or a volume was another one's or empty, the numbers would show it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use windlass_tests::kubectl::kubectl;
use windlass_tests::namespace::Namespace;

use super::workload::JOURNAL;

pub(super) struct Journal {
    /// Of the volume, which is in no namespace.
    name: String,
    /// Of the machine: several nodes of one machine have it in common.
    folder: PathBuf,
}

impl Journal {
    pub(super) fn deploy(namespace: &Namespace) -> Result<Self> {
        let name = namespace.name().to_owned();
        let folder = Path::new("/run").join(&name);
        let journal = Self { name, folder };
        namespace.apply(&journal.manifest())?;
        Ok(journal)
    }

    /// How many numbers were written; each once, and in order.
    pub(super) fn read(&self) -> Result<usize> {
        let path = self.folder.join("numbers");
        let text = fs::read_to_string(&path);
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        for (line, expected) in text.lines().zip(1..) {
            ensure!(
                line == expected.to_string(),
                "{line:?} instead of {expected}"
            );
        }
        Ok(text.lines().count())
    }

    fn manifest(&self) -> String {
        let (volume, folder) = (&self.name, self.folder.display());
        format!(
            r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {volume}}}
spec:
  capacity: {{storage: 1Mi}}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: {volume}
  hostPath: {{path: {folder}, type: DirectoryOrCreate}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {JOURNAL}}}
spec:
  serviceName: {JOURNAL}
  replicas: 1
  selector: {{matchLabels: {{app: {JOURNAL}}}}}
  template:
    metadata: {{labels: {{app: {JOURNAL}}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: journal
          image: windlass.dev/busybox:dev
          imagePullPolicy: IfNotPresent
          command:
            - sh
            - -c
            - |
              trap exit TERM
              last=$(tail -n 1 /journal/numbers)
              while :; do last=$((last + 1)); echo $last >> /journal/numbers; sleep 0.1; done
          volumeMounts: [{{name: journal, mountPath: /journal}}]
  volumeClaimTemplates:
    - metadata: {{name: journal}}
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: {volume}
        resources: {{requests: {{storage: 1Mi}}}}
"#
        )
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        kubectl(&["delete", "persistentvolume", &self.name, "--wait=false"]).ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}
