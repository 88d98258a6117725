{{/* Enabled services as entries of the client's endpoints file. Takes the root. */}}
{{- define "weft.test.endpoints" -}}
{{- $tls := .Values.tls }}
{{- range $component := list "activations" "cache" "trainer" "attribution" "console" }}
{{- if (index $.Values $component).enabled }}
{{ $component }}:
  {{- $target := include "weft.target" (dict "root" $ "component" $component) }}
  {{- if eq $component "console" }}
  {{- $target = replace ":50051" ":8080" $target }}
  url: {{ printf "%s://%s/" (ternary "https" "http" $tls.enabled) $target }}
  {{- end }}
  target: {{ $target }}
  token_file: /etc/weft/tokens/{{ $component }}
  {{- if $tls.enabled }}
  tls_ca: /etc/weft/tls/ca.crt
  {{- if $tls.mutual }}
  tls_cert: /etc/weft/tls/tls.crt
  tls_key: /etc/weft/tls/tls.key
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A container of the test. Takes root, name and command. */}}
{{- define "weft.test.container" -}}
- name: {{ .name }}
  image: {{ include "weft.image" (dict "root" .root "image" .root.Values.client.image) | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: {{ toJson .command }}
  env:
    - {name: HOME, value: /tmp}
    - {name: WEFT_ENDPOINTS, value: /etc/weft/endpoints.json}
  resources:
    requests: {cpu: 50m, memory: 128Mi}
    limits: {memory: 512Mi}
  securityContext:
    {{- include "weft.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: files, mountPath: /etc/weft/endpoints.json, subPath: endpoints.json, readOnly: true}
    - {name: files, mountPath: /etc/weft/console_check.py, subPath: console_check.py, readOnly: true}
    - {name: tokens, mountPath: /etc/weft/tokens, readOnly: true}
    {{- if .root.Values.tls.enabled }}
    - {name: tls, mountPath: /etc/weft/tls, readOnly: true}
    {{- end }}
{{- end }}
