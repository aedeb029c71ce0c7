/**
 * A registry that is down for a minute under a mounted file system. Targets: no error reaches a reader, and all reads have
 * gone on 2 s after it is back. Needs root, FUSE and docker-registry.
 *
 *   bun test/bench/outage.ts [seconds]
 */
import { goThroughOutage } from "../fixtures/outage.ts";

const seconds = Number(process.argv[2] ?? 60);
for (const kind of ["killed", "silent"] as const) {
  const { failed, early, readers, resumed } = await goThroughOutage(kind, seconds);
  console.log(
    `registry ${kind} for ${seconds} s: of ${readers} readers ${failed} got an error, ${early} did not wait`,
  );
  console.log(`the last read was done ${(resumed / 1000).toFixed(2)} s after the registry was back`);
  if (failed > 0 || early > 0 || resumed >= 2000) process.exitCode = 1;
}
