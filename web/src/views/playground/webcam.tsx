import { Button, Switch } from "@mantine/core";
import { useEffect, useEffectEvent, useRef, useState } from "react";

interface Props {
  busy: boolean;
  onPicture: (picture: Blob) => void;
  onClose: () => void;
}

/** The camera's picture, captioned once or again and again. Nothing leaves this machine but to the local server. */
export function Webcam({ busy, onPicture, onClose }: Props) {
  const video = useRef<HTMLVideoElement>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const [ready, setReady] = useState(false);
  const [steady, setSteady] = useState(false);
  useEffect(() => {
    let stream: MediaStream | undefined;
    let gone = false;
    if (!navigator.mediaDevices) {
      setProblem("The browser gives the camera only to pages on this machine (127.0.0.1) or over HTTPS.");
      return;
    }
    navigator.mediaDevices.getUserMedia({ video: { width: 640 } }).then(
      (opened) => {
        stream = opened;
        if (gone) for (const track of opened.getTracks()) track.stop();
        else if (video.current) video.current.srcObject = opened;
      },
      (error: Error) => setProblem(`No camera: ${error.message}`),
    );
    return () => {
      gone = true;
      for (const track of stream?.getTracks() ?? []) track.stop();
    };
  }, []);
  const shoot = (): void => {
    const source = video.current;
    if (!source?.videoWidth) return;
    const canvas = document.createElement("canvas");
    canvas.width = source.videoWidth;
    canvas.height = source.videoHeight;
    canvas.getContext("2d")?.drawImage(source, 0, 0);
    canvas.toBlob((blob) => blob && onPicture(blob), "image/jpeg", 0.9);
  };
  const again = useEffectEvent(shoot);
  useEffect(() => {
    if (!steady || busy || !ready) return;
    const timer = setTimeout(() => again(), 300);
    return () => clearTimeout(timer);
  }, [steady, busy, ready]);
  if (problem) return <div className="notice">{problem}</div>;
  return (
    <div className="webcam">
      <video ref={video} autoPlay muted playsInline aria-label="Camera" onLoadedData={() => setReady(true)} />
      <div className="row">
        <Button variant="default" disabled={!ready || busy} onClick={shoot}>
          Take a picture
        </Button>
        <Switch label="Again and again" checked={steady} onChange={(event) => setSteady(event.currentTarget.checked)} />
        <Button variant="subtle" onClick={onClose}>
          Close
        </Button>
      </div>
    </div>
  );
}
