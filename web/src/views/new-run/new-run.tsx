export default function Stub(_: { id?: string; view?: string }) { return <p>soon</p>; }
