{{/* What components have besides their Deployment. Each template takes root and component. */}}

{{- define "weft.configMap" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "weft.metadata" . | nindent 2 }}
data:
  {{- include "weft.settings" . | trim | nindent 2 }}
{{- end }}

{{- define "weft.service" -}}
{{- $own := index .root.Values .component }}
apiVersion: v1
kind: Service
metadata:
  {{- include "weft.metadata" . | nindent 2 }}
  {{- with $own.serviceAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: ClusterIP
  selector:
    {{- include "weft.selectorLabels" . | nindent 4 }}
    {{- if and (eq .component "trainer") (eq $own.launcher "kubernetes") }}
    # The controller that leads puts this label on its own pod; the others only wait.
    weft.dev/leader: "true"
    {{- end }}
  ports:
    {{- if eq .component "console" }}
    - {name: http, port: 8080, targetPort: http, appProtocol: {{ ternary "https" "http" .root.Values.tls.enabled }}}
    {{- else }}
    - {name: grpc, port: 50051, targetPort: grpc, appProtocol: {{ ternary "https" "grpc" .root.Values.tls.enabled }}}
    {{- end }}
    - {name: metrics, port: 9090, targetPort: metrics, appProtocol: http}
    {{- if eq .component "trainer" }}
    - {name: reports, port: 50052, targetPort: reports, appProtocol: {{ ternary "https" "grpc" .root.Values.tls.enabled }}}
    {{- end }}
{{- end }}

{{- define "weft.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount }}
{{- if $account.create }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "weft.serviceAccountName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "weft.labels" . | nindent 4 }}
  {{- with $account.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
{{- end }}

{{- define "weft.podDisruptionBudget" -}}
{{- $own := index .root.Values .component }}
{{- $hpa := dig "autoscaling" dict $own }}
{{- $replicas := ternary (dig "minReplicas" 1 $hpa) $own.replicas (dig "enabled" false $hpa) }}
{{- if and (gt (int $replicas) 1) (not (kindIs "invalid" $own.disruptionBudget)) }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "weft.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ int $own.disruptionBudget }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "weft.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end }}

{{- define "weft.horizontalPodAutoscaler" -}}
{{- $hpa := (index .root.Values .component).autoscaling }}
{{- $context := . }}
{{- if $hpa.enabled }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "weft.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "weft.componentName" . }}
  minReplicas: {{ int $hpa.minReplicas }}
  maxReplicas: {{ int $hpa.maxReplicas }}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: {{ int $hpa.scaleDownSeconds }}
      policies:
        - {type: Pods, value: 1, periodSeconds: 60}
  metrics:
    {{- range $hpa.metrics }}
    - type: {{ $hpa.metricType }}
      {{- if eq $hpa.metricType "Pods" }}
      pods:
        metric:
          name: {{ .name }}
          {{- with .selector }}
          selector: {matchLabels: {{ toJson . }}}
          {{- end }}
        target: {type: AverageValue, averageValue: {{ .averageValue | quote }}}
      {{- else }}
      external:
        metric:
          name: {{ .name }}
          selector:
            matchLabels:
              namespace: {{ $context.root.Release.Namespace }}
              service: {{ include "weft.componentName" $context }}
              {{- with .selector }}
              {{- toYaml . | nindent 14 }}
              {{- end }}
        target: {type: AverageValue, averageValue: {{ .averageValue | quote }}}
      {{- end }}
    {{- end }}
{{- end }}
{{- end }}
