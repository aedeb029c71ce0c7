/** What the worker threads of this program do. */
import { workerData } from "node:worker_threads";

/** By the `role` in a thread's `workerData`. */
const roles: Record<string, () => Promise<void>> = {
  io: async () => {
    const [{ runWorker }, { VirtualDisk }] = await Promise.all([
      import("./device/worker.ts"),
      import("./image/disk.ts"),
    ]);
    runWorker((tables: ConstructorParameters<typeof VirtualDisk>[0]) => new VirtualDisk(tables));
  },
  layer: async () => (await import("./convert/layer_thread.ts")).serveLayers(),
};

/** Does this worker thread's work. */
export async function runRole(): Promise<void> {
  await roles[(workerData as { role: string }).role]();
}
