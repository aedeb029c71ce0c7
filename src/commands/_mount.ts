/** What the mount commands tell people. */
import type { DownloadStats } from "../blob/background.ts";
import type { MountState } from "../device/mount/record.ts";
import type { MountStats } from "../device/mount/server.ts";
import { formatBytes } from "./_text.ts";

export function describeMount({ source, directory, device, pid }: MountState): string {
  return `${source} is mounted at ${directory} (${device}, served by process ${pid})`;
}

/** What was fetched, against what the image holds. */
export function describeStats({ image, device, lastError }: MountStats): string {
  const share = image.imageBytes === 0 ? 0 : (100 * image.fetchedBytes) / image.imageBytes;
  const fetched = `${formatBytes(image.fetchedBytes)} of ${formatBytes(image.imageBytes)} fetched (${share.toFixed(1)} %)`;
  const moved = `${formatBytes(device.readBytes)} read, ${formatBytes(device.writtenBytes)} written`;
  const failure = lastError === undefined ? [] : [`reads failed, the last time because ${lastError}`];
  const parts = [`${fetched} in ${image.requests} requests`, moved, ...describeDownload(image.download)];
  return [...parts, ...failure].join("; ");
}

function describeDownload(download: DownloadStats | undefined): string[] {
  if (!download) return [];
  const { layers, completed, fetchedBytes } = download;
  return [`${completed} of ${layers} layers completed in the background with ${formatBytes(fetchedBytes)}`];
}
